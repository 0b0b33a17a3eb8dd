"""A scene: nine coloured tiles with marks, its picture, and how one is drawn that holds a path of known length."""

import hashlib
import random
from dataclasses import dataclass
from itertools import pairwise, product

from PIL import Image, ImageDraw

COLOURS = {  # name -> RGB; the nearest two are 115 apart
    "red": (220, 0, 0),
    "green": (0, 150, 0),
    "blue": (0, 40, 255),
    "yellow": (255, 245, 0),
    "purple": (150, 0, 190),
    "orange": (255, 130, 0),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "cyan": (0, 225, 235),
}
SHAPES = ("disc", "square", "triangle", "cross")
TILE_PX = 28
DOT = (22, 2, 25, 5)  # its first and last pixels in a tile, which no mark reaches


@dataclass(frozen=True)
class Scene:
    """What is on the nine tiles, row by row: colour of the tile, colour and shape of the mark on it.

    Attributes:
        mark_shapes: None where sentences leave them out, as no question is about them.
        dots: colour of the dot in a tile's corner, which no question is about; None where there is none.
    """

    tiles: tuple[str, ...]
    mark_colours: tuple[str, ...]
    mark_shapes: tuple[str | None, ...]
    dots: tuple[str | None, ...] = (None,) * 9

    def render(self) -> Image.Image:
        """The picture, 84 x 84 RGB, every pixel exactly one of COLOURS."""
        image = Image.new("RGB", (3 * TILE_PX, 3 * TILE_PX))
        draw = ImageDraw.Draw(image)
        for i, shape in enumerate(self.mark_shapes):
            x, y = i % 3 * TILE_PX, i // 3 * TILE_PX
            draw.rectangle((x, y, x + TILE_PX - 1, y + TILE_PX - 1), fill=COLOURS[self.tiles[i]])
            fill = COLOURS[self.mark_colours[i]]
            if shape == "disc":
                draw.ellipse((x + 6, y + 6, x + 21, y + 21), fill=fill)
            elif shape == "square":
                draw.rectangle((x + 7, y + 7, x + 20, y + 20), fill=fill)
            elif shape == "triangle":
                draw.polygon(((x + 13, y + 6), (x + 14, y + 6), (x + 22, y + 21), (x + 5, y + 21)), fill=fill)
            else:
                draw.rectangle((x + 6, y + 11, x + 21, y + 16), fill=fill)
                draw.rectangle((x + 11, y + 6, x + 16, y + 21), fill=fill)
            if dot := self.dots[i]:
                draw.rectangle((x + DOT[0], y + DOT[1], x + DOT[2], y + DOT[3]), fill=COLOURS[dot])
        return image

    def facts(self) -> dict[str, str]:
        """What is on each tile, in a sentence."""
        on = zip(self.tiles, self.mark_colours, self.mark_shapes, strict=True)
        return {tile: f"On {tile} is {_mark(colour, shape)}." for tile, colour, shape in on}

    def describe(self) -> str:
        """The picture in sentences, which say all but where the tiles are."""
        sentences = []
        for (tile, fact), dot in zip(self.facts().items(), self.dots, strict=True):
            sentences += [fact, f"In the corner of {tile} is {dot}."] if dot else [fact]
        return " ".join(sentences)


def _mark(colour: str, shape: str | None) -> str:
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}" if shape else colour


def draw_scene(
    rng: random.Random, kind: str, answer: str, hops: int, distractors: int, n_tiles: int, tells_shapes: bool
) -> tuple[Scene, list[str]]:
    """A random scene whose question of this kind has this answer, and the path of different tiles to it."""
    tiles = rng.sample(list(COLOURS), len(COLOURS))
    others = [tile for tile in tiles if tile != answer]
    absent = others[n_tiles - (kind == "tile") :]
    tiles = [tile for tile in tiles if tile not in absent]
    if kind == "tile":
        path = [*rng.sample([tile for tile in tiles if tile != answer], hops), answer]
    else:  # naming the shape is the last hop
        path = rng.sample(tiles, hops)
    mark_colours = {tile: rng.choice([other for other in tiles if other != tile]) for tile in tiles}
    mark_colours.update(pairwise(path))
    mark_shapes = {tile: rng.choice(SHAPES) for tile in tiles}
    if kind == "shape":
        mark_shapes[path[-1]] = answer
    dots: dict[str, str | None] = dict.fromkeys(tiles)
    for tile in rng.sample(tiles, distractors):
        dots[tile] = rng.choice([other for other in tiles if other != tile])
    shapes = tuple(mark_shapes[tile] if tells_shapes else None for tile in tiles)
    marks = tuple(mark_colours[tile] for tile in tiles), shapes
    return Scene(tuple(tiles), *marks, tuple(dots[tile] for tile in tiles)), path


def digest_of(image: Image.Image) -> str:
    """Of a picture without its dots."""
    plain = image.convert("RGB")
    for x, y in product(range(0, plain.width, TILE_PX), range(0, plain.height, TILE_PX)):
        ground = plain.getpixel((x, y))
        assert ground is not None
        plain.paste(ground, (x + DOT[0], y + DOT[1], x + DOT[2] + 1, y + DOT[3] + 1))
    return hashlib.sha256(plain.tobytes()).hexdigest()
