"""Ids of records: a record's own or its place, and what tells records apart that share one."""

from collections.abc import Iterable
from typing import Any

from multicoco.data.sources.fields import text_or_number
from multicoco.data.sources.source import ID_KEYS


def _given_id(record: Any, index: int) -> tuple[str, Any]:
    """Key and value of the record's own id, else its place in the file."""
    own = [(key, record.get(key)) for key in ID_KEYS] if isinstance(record, dict) else []
    return next((item for item in own if item[1] not in (None, "")), ("place", index))


def own_id(record: Any, index: int) -> str:
    """A record's own id, else its place.

    Raises:
        UserError: it is none; with the reason alone.
    """
    key, given = _given_id(record, index)
    return text_or_number(given, key)


def label_of(record: Any, index: int) -> str:
    """What messages call a record, by its place and its own id."""
    key, given = _given_id(record, index)
    return f"record {index}" if key == "place" else f"record {index} (id {given!r:.60})"


class Numbers:
    """What tells names apart that come more than once: 1 for the first of a name, whatever comes after it."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}

    def next(self, name: str) -> int:
        """Of a name that comes now."""
        number = 1
        while numbered(name, number) in self._taken:
            number = self._last[name] = self._last.get(name, 1) + 1
        self._taken.add(numbered(name, number))
        return number


def numbered(name: str, number: int) -> str:
    """Where several share an id, the second one's is "id#2"."""
    return f"{name}#{number}" if number > 1 else name


def numbers_of(names: Iterable[str]) -> list[int]:
    """Of names that come one after the other."""
    numbers = Numbers()
    return [numbers.next(name) for name in names]
