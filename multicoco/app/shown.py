"""Answers, thoughts and pictures as HTML. Whatever a model, a file or a user says is shown as text."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image

from multicoco.ask.asker import Answer
from multicoco.ask.attention import Seen
from multicoco.data.example import ImageSource, load_image
from multicoco.report.pictures import data_url
from multicoco.report.rendering import page_environment

_TEMPLATES = Path(__file__).parent / "templates"
_SIDE = 320  # pixels, the most
_QUALITY = 75
_COLOUR = (255, 96, 0)
_LONGEST_TEXT = 20_000


def style() -> str:
    return (_TEMPLATES / "app.css").read_text(encoding="utf-8")


def show_message(text: str) -> str:
    return _render("message.html", text=text)


def show_pictures(sources: Sequence[ImageSource]) -> str:
    """Thumbnails.

    Raises:
        UserError: one cannot be read.
    """
    return _render("pictures.html", urls=[data_url(_thumbnail(source), _QUALITY) for source in sources])


def show_answers(answers: Sequence[Answer], running: str = "") -> str:
    """Side by side, and the mode that is still being asked."""
    return _render("answers.html", answers=answers, running=running)


def show_thoughts(answer: Answer, seen: Sequence[Seen], sources: Sequence[ImageSource], problem: str) -> str:
    """Each with its words, its norm, and the pictures with what it attends to.

    Args:
        seen: () with a problem, which says why attention is not known.
    """
    pictures = [_thumbnail(source) for source in sources]

    def drawn(maps: Sequence[Sequence[Sequence[float]]]) -> list[str]:
        both = zip(pictures, maps, strict=True)
        return [data_url(_laid_over(picture, weights), _QUALITY) for picture, weights in both if weights]

    longest = max(answer.norms, default=0) or 1
    rows = [
        {
            "words": words,
            "norm": norm,
            "length": norm / longest,
            "share": seen[k].share if seen else None,
            "drawn": [("last layer", drawn(seen[k].last)), ("rollout", drawn(seen[k].rollout))] if seen else [],
        }
        for k, (words, norm) in enumerate(zip(answer.words, answer.norms, strict=True))
    ]
    return _render("thoughts.html", answer=answer, rows=rows, problem=problem, has_pictures=bool(pictures))


def show_changed(answer: Answer) -> str:
    """The answer with the thoughts as they are, beside those under each intervention."""
    return _render("changed.html", answer=answer)


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = page_environment(_TEMPLATES)
    environment.filters |= {"readable": _readable, "word": lambda word: _readable(word.strip() or repr(word))}
    return environment


def _readable(text: str) -> str:
    """What a browser can be sent: a model may write half a character, or very much."""
    whole = text.encode("utf-8", "replace").decode()
    return whole if len(whole) <= _LONGEST_TEXT else f"{whole[:_LONGEST_TEXT]}… and {len(whole) - _LONGEST_TEXT} more"


def _thumbnail(source: ImageSource) -> Image.Image:
    image = load_image(source)
    image.thumbnail((_SIDE, _SIDE))
    return image


def _laid_over(picture: Image.Image, weights: Sequence[Sequence[float]]) -> Image.Image:
    """The picture in grey, coloured where the weights are, the greatest most."""
    cells = np.array(weights)
    shares = Image.fromarray(np.round(230 * cells / (cells.max() or 1)).astype(np.uint8))
    mask = shares.resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", picture.size, _COLOUR), picture.convert("L").convert("RGB"), mask)
