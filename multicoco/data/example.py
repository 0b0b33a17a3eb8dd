"""One example of a data set, whatever file it came from, and its image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from multicoco.errors import UserError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


@dataclass(frozen=True)
class Example:
    """A question, the written reasoning and the answer.

    Attributes:
        id: different for every example of a file.
        question: without the choices.
        image: path of the image, None in a text-only example.
        choices: their texts, () for an open question.
        steps: the written reasoning, step by step; may be ().
        answer: the right choice's text, or a free-text answer; None in a test record.
        answer_index: index into `choices`, None without choices or without an answer.
        direct_answers: free-text answers of several annotators; may be ().
    """

    id: str
    question: str
    image: Path | None
    choices: tuple[str, ...]
    steps: tuple[str, ...]
    answer: str | None
    answer_index: int | None
    direct_answers: tuple[str, ...]


def load_image(path: Path) -> Image.Image:
    """The first frame of an image file as 8-bit RGB, upright, transparency on white.

    Raises:
        UserError: the file is missing, broken, far too large or in none of IMAGE_FORMATS.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
            image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except Exception as error:  # on broken data, decoders raise nearly anything
        raise UserError(
            f"{path}: cannot be read as an image ({error}): give a whole {', '.join(IMAGE_FORMATS)} file"
        ) from error
