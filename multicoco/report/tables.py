"""Tables of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def number(value: Any, form: str) -> str:
    """By a format, or nothing for what is none."""
    return format(value, form) if isinstance(value, int | float) else ""
