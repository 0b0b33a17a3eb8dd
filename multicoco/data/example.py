"""One example of a data set, whatever file it came from, and its images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import ExifTags, Image

from multicoco.data.metadata import without_metadata
from multicoco.errors import UserError

if TYPE_CHECKING:
    from multicoco.config.data import Judge

Image.init()
_SHOWN_BY_VIEWERS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM")
IMAGE_FORMATS = tuple(name for name in _SHOWN_BY_VIEWERS if name in Image.OPEN)  # a build of Pillow may lack some

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)


class StoredImage(Protocol):
    """An image that lies in a file of records, and is read from there when it is wanted. Its text says where it is."""

    def read(self) -> bytes:
        """The whole image file."""
        ...


ImageSource = Path | bytes | StoredImage


@dataclass(frozen=True)
class Turn:
    """What was asked and answered before, in the same conversation.

    Attributes:
        image_places: of each image that is shown with it, the character of the question that it stands in front of.
    """

    question: str
    answer: str
    image_places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Example:
    """A question, the written reasoning and the answer.

    Attributes:
        id: different for every example of a file.
        question: without the choices.
        images: paths of the images, whole image files as bytes, or where these are stored; () in a text-only example,
            for which None may be given.
        choices: their texts, () for an open question; a text may be empty, or stand twice.
        steps: the written reasoning, step by step; may be ().
        answer: the right choice's text, or a free-text answer; None in a test record.
        answer_index: index into `choices`, None without choices or without an answer.
        direct_answers: free-text answers of several annotators; may be ().
        judge: how an answer to an open question is compared with the right one.
        image_places: of each image that is not an earlier turn's, the character of the question that it stands in front
            of. If not all images have a place, here or there, all are in front of the first question.
        metric: the name of the data set's own evaluation (`multicoco.registry`), if it has one.
        groups: what that tells questions apart by, such as {"subject": "natural science"}.
        earlier: what was asked and answered before; its images are the first ones.
    """

    id: str
    question: str
    images: tuple[ImageSource, ...]
    choices: tuple[str, ...]
    steps: tuple[str, ...]
    answer: str | None
    answer_index: int | None
    direct_answers: tuple[str, ...] = ()
    judge: Judge = "text"
    image_places: tuple[int, ...] = ()
    metric: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict, hash=False)
    earlier: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images or ()))

    @property
    def image(self) -> ImageSource | None:
        """The first image."""
        return self.images[0] if self.images else None

    @property
    def conversation(self) -> str:
        """All that was said up to the question, and the question; a line each."""
        return "\n".join([*(text for turn in self.earlier for text in (turn.question, turn.answer)), self.question])


def load_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """The first frame of an image file as 8-bit RGB, upright, transparency on white.

    Whatever is wrong with its metadata is no matter, as long as all pixels are there.

    Args:
        source: the file's path, its content, or where that is stored.
        name: by which an error names it.

    Raises:
        UserError: the file is missing, broken, far too large or in none of IMAGE_FORMATS.
    """
    name = name or ("an image" if isinstance(source, bytes) else str(source))
    source = source if isinstance(source, bytes | Path) else source.read()
    try:
        return _decode(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Exception as error:  # on broken data, decoders raise nearly anything
        for plain in without_metadata(source):
            try:
                return _decode(io.BytesIO(plain))
            except Exception:  # the first error is the one to tell
                continue
        raise UserError(
            f"{name}: cannot be read as an image ({error}): give a whole {', '.join(IMAGE_FORMATS)} file"
        ) from error


def image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) of an image, upright, from its file's header where that tells.

    Raises:
        UserError: as `load_image`.
    """
    file = source if isinstance(source, bytes | Path) else source.read()
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=IMAGE_FORMATS) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    except Exception:  # what a header does not tell, or not rightly, the whole file may
        return load_image(source).size
    return (height, width) if turned else (width, height)


def _decode(file: Path | io.BytesIO) -> Image.Image:
    with Image.open(file, formats=IMAGE_FORMATS) as opened:
        opened.load()
        image = _upright(opened)
        if image.mode == "F":  # which convert() would clip to black
            raise ValueError("its pixels are floating-point numbers of an unknown range")
        if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
            grey = np.asarray(image).astype(np.float64) / 257
            image = Image.fromarray(np.round(grey).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF that is none says nothing
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
