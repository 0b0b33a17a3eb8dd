"""Files of records: a JSON list, JSON Lines, an object of records by their ids, or CSV."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from multicoco.data.sources.source import ID_KEYS
from multicoco.errors import UserError

_LINES = (".jsonl", ".ndjson")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_records(path: Path) -> list[Any]:
    """The records of a file, whatever they are; a line of JSON Lines or CSV that is none is a UserError in the list.

    Raises:
        UserError: the file cannot be read, or holds no records.
    """
    try:
        content = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of a JSON file") from error
    except ValueError as error:
        raise UserError(f"{path}: is not valid UTF-8, as JSON and CSV must be ({error})") from error
    if separator := _SEPARATORS.get(Path(path).suffix.lower()):
        return _rows(path, content, separator)
    if content.lstrip().startswith("{") and Path(path).suffix.lower() in _LINES:
        return _lines(content)
    try:
        records = _parse(content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and content.lstrip().startswith("{"):
            return _lines(content)
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


def _lines(content: str) -> list[Any]:
    records: list[Any] = []
    for number, line in enumerate(content.split("\n"), 1):  # splitlines() would also split within texts
        if not line.strip():
            continue
        try:
            records.append(_parse(line))
        except (ValueError, RecursionError) as error:
            records.append(UserError(f"line {number} is not valid JSON ({error})"))
    return records


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


def _parse(content: str) -> Any:
    return json.loads(content, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):  # of two values, Python's json takes the last one without a word
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return record
