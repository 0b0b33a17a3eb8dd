"""Files of records: a JSON list, JSON Lines, an object of records by their ids, or CSV."""

import codecs
import csv
import io
import json
import mmap
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multicoco.data.sources.source import ID_KEYS
from multicoco.errors import UserError

_LINES = (".jsonl", ".ndjson")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Lines(Sequence[Any]):
    """The records of JSON Lines in UTF-8, each read when it is asked for. Blank lines are none.

    Args:
        path: of a file that is not empty.
    """

    def __init__(self, path: Path):
        with path.open("rb") as file:
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._starts, self._numbers = array("q"), array("q")
        start, number = (3 if self._content[:3] == codecs.BOM_UTF8 else 0), 1
        while start < len(self._content):
            end = self._content.find(b"\n", start)
            end = len(self._content) if end < 0 else end
            if self._content[start:end].strip():
                self._starts.append(start)
                self._numbers.append(number)
            start, number = end + 1, number + 1

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        """The record, or a UserError for a line that is no JSON."""
        start = self._starts[index]
        end = self._content.find(b"\n", start)
        try:
            return parse_json(self._content[start : len(self._content) if end < 0 else end].decode())
        except (ValueError, RecursionError) as error:
            return UserError(f"line {self._numbers[index]} is not valid JSON ({error})")


def read_records(path: Path) -> Sequence[Any]:
    """The records of a file, whatever they are; among them a UserError for a line of JSON Lines or CSV that is none.

    Raises:
        UserError: the file cannot be read, or holds no records.
    """
    try:
        if Path(path).suffix.lower() in _LINES and _begins_with_object(path):
            return Lines(Path(path))
        content = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of a JSON file") from error
    except ValueError as error:
        raise UserError(f"{path}: is not valid UTF-8, as JSON and CSV must be ({error})") from error
    if separator := _SEPARATORS.get(Path(path).suffix.lower()):
        return _rows(path, content, separator)
    try:
        records = parse_json(content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and content.lstrip().startswith("{"):
            return Lines(Path(path))
        raise UserError(f"{path}: is not valid JSON ({error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from error
    if isinstance(records, dict) and records and all(isinstance(record, dict) for record in records.values()):
        return [
            record if any(k in record for k in ID_KEYS) else {"id": key, **record} for key, record in records.items()
        ]
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: must hold a JSON list of at least one record, or one record a line")
    return records


def _begins_with_object(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def _rows(path: Path, content: str, separator: str) -> list[Any]:
    """By the names in the first row: texts, lists where a cell is one in JSON, nothing where it is empty."""
    records: list[Any] = []
    csv.field_size_limit(2**31 - 1)  # of the process; pictures in base64 are longer than the default
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise UserError(f"{path}: two columns have the same name")
        for row in filter(None, rows):
            if len(row) == len(header):
                records.append(dict(zip(header, map(_cell, row), strict=True)))
            else:
                cells = f"{len(row)} cells where the first row has {len(header)}"
                records.append(UserError(f"the row up to line {rows.line_num} has {cells}"))
    except csv.Error as error:
        raise UserError(f"{path}: line {rows.line_num} is not valid CSV ({error})") from error
    if not records:
        raise UserError(f"{path}: must hold a row of names, and one record a row after it")
    return records


def _cell(text: str) -> Any:
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text if text.strip() else None


def parse_json(content: str) -> Any:
    """JSON in which no key stands twice. Raises ValueError, or RecursionError."""
    return json.loads(content, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):  # of two values, Python's json takes the last one without a word
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return record
