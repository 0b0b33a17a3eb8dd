"""Generated scenes: pictures and questions that need a known number of reasoning steps.

A scene is 3 x 3 tiles of nine colours; the mark on a tile has the colour of the tile to go to next. Written
in the official A-OKVQA release format, so it goes through the same loader as the real data.
"""

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice, pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from multicoco.errors import UserError

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
KINDS = {"tile": tuple(COLOURS), "shape": SHAPES}  # kind of question -> its answers
TILE_PX = 28
MAX_HOPS = 5


@dataclass(frozen=True)
class Scene:
    """What is on the nine tiles, row by row: colour of the tile, colour and shape of the mark on it."""

    tiles: tuple[str, ...]
    mark_colours: tuple[str, ...]
    mark_shapes: tuple[str, ...]

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
        return image


def draw_scene(rng: random.Random, kind: str, answer: str, hops: int) -> tuple[Scene, list[str]]:
    """A random scene whose question of this kind has this answer, and the path of different tiles to it."""
    tiles = rng.sample(list(COLOURS), len(COLOURS))
    if kind == "tile":
        path = [*rng.sample([tile for tile in tiles if tile != answer], hops), answer]
    else:  # naming the shape is the last hop
        path = rng.sample(tiles, hops)
    mark_colours = {tile: rng.choice([other for other in tiles if other != tile]) for tile in tiles}
    mark_colours.update(pairwise(path))
    mark_shapes = {tile: rng.choice(SHAPES) for tile in tiles}
    if kind == "shape":
        mark_shapes[path[-1]] = answer
    scene = Scene(tuple(tiles), tuple(mark_colours[tile] for tile in tiles), tuple(mark_shapes[tile] for tile in tiles))
    return scene, path


def make_record(rng: random.Random, kind: str, answer: str, answer_index: int, path: list[str]) -> dict[str, Any]:
    """The question about a path, as the content keys of an A-OKVQA record."""
    times = "1 time" if len(path) == 2 else f"{len(path) - 1} times"
    question = f"Start at the {path[0]} tile and follow the marks {times}."
    steps = [f"From {tile} go to {following}." for tile, following in pairwise(path)]
    if kind == "tile":
        question += " Which tile do you reach?"
        # Tiles on the path come first, so that knowing which tiles are on it does not give the answer.
        off_path = [tile for tile in COLOURS if tile not in path]
        wrong = [*rng.sample(path[1:-1], len(path) - 2), *rng.sample(off_path, 3)][:3]
    else:
        question += " Which shape is on the tile you reach?"
        steps.append(f"The shape on {path[-1]} is {answer}.")
        wrong = [shape for shape in SHAPES if shape != answer]
    choices = rng.sample(wrong, 3)
    choices.insert(answer_index, answer)
    return {
        "question": question,
        "choices": choices,
        "correct_choice_idx": answer_index,
        "direct_answers": [answer] * 10,
        "difficult_direct_answer": False,
        "rationales": [" ".join(steps)],
    }


def balanced_plan(rng: random.Random, size: int, kinds: Sequence[str]) -> list[tuple[str, str, int]]:
    """(kind, answer, index of the answer) of each record of a split, in random order.

    The counts of kinds, of the answers of a kind and of indices (also within a kind) differ by at most 1.
    """
    questions = []
    for number, kind in enumerate(kinds):
        n_questions = len(range(number, size, len(kinds)))
        words = rng.sample(KINDS[kind], len(KINDS[kind]))
        answers = list(islice(cycle(words), n_questions))
        rng.shuffle(answers)
        questions += [(kind, answer) for answer in answers]
    plan = [(kind, answer, i % 4) for i, (kind, answer) in enumerate(questions)]
    rng.shuffle(plan)
    return plan


def render_scenes(
    out_dir: Path,
    train: int = 8000,
    val: int = 500,
    test: int = 100,
    seed: int = 0,
    kinds: Sequence[str] = ("tile", "shape"),
    hops: int = 3,
) -> dict[str, int]:
    """Renders a data set of scenes: `aokvqa_v1p0_{split}.json`, `{split}2017/{image_id:012d}.png`, README.md.

    The same arguments give the same bytes. No scene occurs twice, within a split or across splits. Test
    records carry no answer and no rationales, as in the official release.

    Args:
        out_dir: a new or empty folder, or one that holds this very data set, which is then left as it is.
        train, val, test: records per split; test may be 0.
        seed: of everything drawn.
        kinds: "tile" (which tile do you reach) and "shape" (which shape is on it), in equal parts.
        hops: reasoning steps of every question, 1 to 5.

    Returns:
        The number of records per split.

    Raises:
        UserError: bad arguments, or `out_dir` holds something else or cannot be written.
    """
    sizes = {"train": train, "val": val, "test": test}
    if train < 1 or val < 1 or test < 0:
        raise UserError(f"scenes: train and val must be at least 1 and test at least 0, not {sizes}")
    if not kinds or len(set(kinds)) != len(kinds) or not set(kinds) <= set(KINDS):
        raise UserError(f"scenes: kinds must be different ones of {', '.join(KINDS)}, not {list(kinds)}")
    if not 1 <= hops <= MAX_HOPS:
        raise UserError(f"scenes: hops must be 1 to {MAX_HOPS}, not {hops}")

    arguments = {**sizes, "seed": seed, "kinds": list(kinds), "hops": hops}
    out_dir = Path(out_dir).resolve()
    try:
        if out_dir.is_dir() and any(out_dir.iterdir()):
            if not _holds(out_dir, arguments, sizes):
                raise UserError(f"{out_dir} is not empty and not the data set of {arguments}: give another folder")
            return sizes
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        # Renamed at the end, so that an interrupted run leaves no half data set.
        with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}-", dir=out_dir.parent) as parent:
            unfinished = Path(parent) / out_dir.name
            _write(unfinished, arguments, sizes)
            unfinished.rename(out_dir)
    except OSError as error:
        raise UserError(f"{out_dir}: cannot write the scenes there ({error}): give another folder") from error
    return sizes


def _image_path(split: str, image_id: int) -> str:
    return f"{split}2017/{image_id:012d}.png"


def _holds(folder: Path, arguments: dict[str, Any], sizes: dict[str, int]) -> bool:
    """Whether `folder` holds exactly the files of the data set made with `arguments`."""
    image_ids = count(1)
    expected = {"README.md", "dataset.json"}
    for split, size in sizes.items():
        expected |= {f"aokvqa_v1p0_{split}.json", *(_image_path(split, i) for i in islice(image_ids, size))}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found == expected and (folder / "dataset.json").read_text(encoding="utf-8") == _to_json(arguments)


def _write(folder: Path, arguments: dict[str, Any], sizes: dict[str, int]) -> None:
    rng = random.Random(arguments["seed"])
    seen: set[Scene] = set()
    image_ids = count(1)
    example: dict[str, Any] = {}
    for split, size in sizes.items():
        (folder / f"{split}2017").mkdir(parents=True)
        records = []
        for kind, answer, answer_index in balanced_plan(rng, size, arguments["kinds"]):
            scene, path = draw_scene(rng, kind, answer, arguments["hops"])
            while scene in seen:
                scene, path = draw_scene(rng, kind, answer, arguments["hops"])
            seen.add(scene)
            image_id = next(image_ids)
            scene.render().save(folder / _image_path(split, image_id))
            ids = {"split": split, "image_id": image_id, "question_id": f"scene-{image_id}"}
            records.append(ids | make_record(rng, kind, answer, answer_index, path))
        example = example or records[0]
        if split == "test":
            for record in records:
                for key in ("correct_choice_idx", "direct_answers", "rationales"):
                    del record[key]
        (folder / f"aokvqa_v1p0_{split}.json").write_text(_to_json(records), encoding="utf-8")
    (folder / "README.md").write_text(_readme(sizes, example), encoding="utf-8")
    (folder / "dataset.json").write_text(_to_json(arguments), encoding="utf-8")


def _to_json(value: list[Any] | dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def _readme(sizes: dict[str, int], example: dict[str, Any]) -> str:
    counts = ", ".join(f"{size} {split}" for split, size in sizes.items())
    return f"""# Generated scenes

Records ({counts}) in the format of the A-OKVQA release, written by MultiCoCo
(`multicoco/data/scenes.py`); the arguments are in `dataset.json`. Test records carry no answer.

A picture has 3 x 3 tiles of nine colours. The mark on a tile (disc, square, triangle or cross) has the
colour of the tile to go to next.

To check one by eye:

- image: `{_image_path(example["split"], example["image_id"])}`
- question: {example["question"]}
- choices: {", ".join(example["choices"])}
- steps: {example["rationales"][0]}
- answer: {example["direct_answers"][0]}
"""
