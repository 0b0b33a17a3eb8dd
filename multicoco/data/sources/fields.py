"""The fields of records that several sources share. Each function raises UserError with the reason alone."""

import base64
import binascii
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from multicoco.data.example import Example, ImageSource
from multicoco.data.sources.source import Record
from multicoco.errors import UserError

IMAGE_MARK = "<image>"

_DATA_URI = re.compile(r"data:[^,]*?(;base64)?,", re.IGNORECASE)
# bare base64: what PNG, JPEG, GIF, WebP, BMP and TIFF begin with, or a length that no path has
_BASE64 = re.compile(r"(?=.{200}|iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk|SUkq|TU0A)[A-Za-z0-9+/\s]{40,}=*\s*", re.DOTALL)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

# Names of what is `steps` in records that have some.
_REASONING = (
    *("rationale", "rationales", "reasoning", "reasoning_content", "solution", "explanation"),
    *("cot", "chain_of_thought", "thought", "thoughts", "thinking"),
)

# What a key may be that belongs to the question, and what tells that it is only about it.
_IMAGE = re.compile(r"(?:image|img|picture|photo|figure|diagram|frame|screenshot)s?")
_INPUT = re.compile(
    r"""(?:choice|option|context|hint|passage|paragraph|premise|background|document|article|story|table|fact|body
    |instruction|input|history|conversation|message|system|video|audio)s?""",
    re.VERBOSE,
)
_ABOUT = re.compile(
    r"ids?|idx|index|type|kind|count|num|number|correct|answer|label|width|height|size|format|source|url|hash|name"
)


def required(record: Record, *keys: str) -> None:
    """Keys that must be there, though their values may be null."""
    for key in keys:
        if key not in record:
            there = f", there are {', '.join(map(repr, record))}"[:200] if record else ""
            raise UserError(f"{key!r} is missing{there}")


def text(value: Any, name: str) -> str:
    """A text that is not blank, without outer white space."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name!r} must be text that is not empty, found {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
        raise UserError(f"{name!r} is not valid Unicode ({error.reason})") from error
    return value.strip()


def text_or_number(value: Any, name: str) -> str:
    """A text, or a JSON number as text."""
    return str(value) if is_number(value) else text(value, name)


def is_number(value: Any) -> bool:
    """A finite JSON number (isinstance takes a bool)."""
    return type(value) is int or (type(value) is float and abs(value) < float("inf"))


def texts(value: Any, name: str) -> tuple[str, ...]:
    """A list of texts; empty ones are left out."""
    if not isinstance(value, list):
        raise UserError(f"{name!r} must be a list of texts, found {value!r:.60}")
    return tuple(text(item, f"{name}[{i}]") for i, item in enumerate(value) if not _is_blank(item))


def choices_of(value: Any, name: str) -> tuple[str, ...]:
    """A list of at least two texts or numbers. An empty one stays: published data has some, and it has its label."""
    if not isinstance(value, list):
        raise UserError(f"{name!r} must be a list of texts, found {value!r:.60}")
    if len(value) < 2:
        raise UserError(f"there must be at least 2 choices in {name!r}, found {len(value)}")
    return tuple("" if _is_blank(item) else text_or_number(item, f"{name}[{i}]") for i, item in enumerate(value))


def integer(value: Any, name: str) -> int:
    """A whole number."""
    if type(value) is not int:
        raise UserError(f"{name!r} must be an integer, found {value!r:.60}")
    return value


def choice_at(value: Any, choices: tuple[str, ...], name: str) -> int:
    """An index into the choices."""
    index = integer(value, name)
    if not 0 <= index < len(choices):
        raise UserError(f"{name!r} is {index}, but there are {len(choices)} choices")
    return index


def inside(folder: Path, relative: str) -> Path:
    """A path that must not leave the image folder."""
    path = Path(os.path.normpath(folder / relative))
    if not path.is_relative_to(folder):
        way_out = "absolute paths need image_dir: /" if relative.startswith("/") else "set image_dir to one above it"
        raise UserError(f"{relative!r:.60} leaves the image folder {folder}: {way_out}")
    return path


def is_file(path: Path) -> bool:
    """Whether there is such a file; a path that no file can have is told apart."""
    try:
        return path.is_file()
    except OSError as error:
        raise UserError(f"{str(path)!r:.60} is no path of an image ({error.strerror})") from error


def image_of(value: Any, name: str, folder: Path) -> ImageSource:
    """An image: a path in the image folder, base64 (bare or a data URI), the file's bytes, where these are stored, or
    Hugging Face's {"bytes": ..., "path": ...}."""
    if isinstance(value, dict) and "bytes" in value and value.keys() <= {"bytes", "path"}:
        content = value["bytes"]
        return image_of(value.get("path"), name, folder) if content is None else image_of(content, name, folder)
    if isinstance(value, bytes) or hasattr(value, "read"):
        source: ImageSource = value
        return source
    if isinstance(value, str) and (uri := _DATA_URI.match(value)):
        if uri[1] is None:
            raise UserError(f"{name!r} is a data URI that is not in base64, found {value!r:.40}")
        return _decoded(value[uri.end() :], name)
    if isinstance(value, str) and _BASE64.fullmatch(value):
        return _decoded(value, name)
    return _image_file(value, name, folder)


def _decoded(value: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except binascii.Error as error:
        raise UserError(f"{name!r} is not whole base64 ({error}), found {value!r:.40}") from error


def _image_file(value: Any, name: str, folder: Path) -> Path:
    relative = text(value, name)
    if _ADDRESS.match(relative):
        raise UserError(
            f"{name!r} is an address, and nothing is downloaded while training: save the image in the image folder and "
            f"write its path here, found {relative!r:.60}"
        )
    if "\0" in relative:
        raise UserError(f"{name!r} is no path, found {relative!r:.60}")
    path = inside(folder, relative)
    if not is_file(path):
        found = "it is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"there is no image {relative!r:.200} in {folder}: {found}")
    return path


def images_of(record: Record, folder: Path) -> tuple[ImageSource, ...]:
    """The images under "image" (one, or several) or "images" (a list); () where both are null or absent."""
    image, images = record.get("image"), record.get("images")
    if image is not None and images not in (None, []):
        raise UserError("'image' and 'images' are both given: leave one of them out")
    name, value = ("images", images) if image is None else ("image", image)
    if value is None or (name == "images" and value == []):
        return ()
    if isinstance(value, list) and value:
        return tuple(image_of(item, f"{name}[{i}]", folder) for i, item in enumerate(value))
    return (image_of(value, name, folder),)


def place_images(example: Example) -> Example:
    """The same with the marks of its images taken out of its questions, as `image_places`."""
    if not example.images:
        return example  # what looks like a mark is text
    if any(IMAGE_MARK in choice for choice in example.choices):
        raise UserError(f"a choice has the mark {IMAGE_MARK}: choices that are pictures are not supported")
    n_marks = sum(question.count(IMAGE_MARK) for question in (*(t.question for t in example.earlier), example.question))
    if n_marks == 0:
        return example
    if n_marks != len(example.images):
        raise UserError(
            f"the text has {n_marks} marks {IMAGE_MARK} for {len(example.images)} images: write one for each, or none"
        )
    earlier = []
    for turn in example.earlier:
        question, places = _without_marks(turn.question)
        earlier.append(replace(turn, question=question, image_places=places))
    question, places = _without_marks(example.question)
    in_front = not earlier and not any(places)
    return replace(example, question=question, image_places=() if in_front else places, earlier=tuple(earlier))


def _without_marks(marked: str) -> tuple[str, tuple[int, ...]]:
    """A question without its marks, and the characters that these stood in front of."""
    pieces = marked.split(IMAGE_MARK)
    whole = "".join(pieces)
    question = text(whole, f"question without {IMAGE_MARK}")
    cut_off = len(whole) - len(whole.lstrip())
    ends = [len("".join(pieces[: place + 1])) - cut_off for place in range(len(pieces) - 1)]
    return question, tuple(min(max(end, 0), len(question)) for end in ends)


def refuse_other_reasoning(record: Record, also: str = "") -> None:
    """Refuses a record, in which no reasoning was found, with a key that looks like it.

    Args:
        also: what there is to be set beside its column.
    """
    for key in _REASONING:
        if record.get(key):
            raise UserError(f"{key!r} looks like the reasoning, and is not read: set columns: {{steps: {key}}}{also}")


def refuse_unread(record: Record, read: frozenset[str]) -> None:
    """Refuses a record with a key that is not read and looks like a part of the question."""
    has_image = any(record.get(key) not in (None, []) for key in ("image", "images"))
    for key, value in record.items():
        if key in read or value in (None, "", [], {}, 0) or isinstance(value, bool):
            continue
        words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", key)]
        about = any(map(_ABOUT.fullmatch, words))
        if any(map(_IMAGE.fullmatch, words)):
            is_input = not (has_image and about)
        else:
            named = key in set("ABCDE") or (any(map(_INPUT.fullmatch, words)) and not about)
            is_input = named and not is_number(value)
        if is_input:
            raise UserError(
                f"{key!r} looks like a part of the question, and is not read: put it into 'question', 'choices' or "
                "'images', or leave it out"
            )


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()
