"""Files of records: a JSON list, JSON Lines, or an object of records by their ids."""

import json
from pathlib import Path
from typing import Any

from multicoco.data.sources.source import ID_KEYS
from multicoco.errors import UserError

_LINES = (".jsonl", ".ndjson")


def read_records(path: Path) -> list[Any]:
    """The records of a file, whatever they are; a line of JSON Lines that is no JSON is a UserError in the list.

    Raises:
        UserError: the file cannot be read, or holds no records.
    """
    try:
        content = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of a JSON file") from error
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from error
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


def _parse(content: str) -> Any:
    return json.loads(content, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):  # of two values, Python's json takes the last one without a word
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return record
