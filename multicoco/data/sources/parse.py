"""From records to examples: which source reads each, under which id, and what messages call it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multicoco.data.example import Example, Judge
from multicoco.data.numbers import single_number
from multicoco.data.sources.fields import refuse_unread, text_or_number
from multicoco.data.sources.source import ID_KEYS, Source, StepsFrom
from multicoco.errors import UserError
from multicoco.registry import load, names

_FALLBACK = "records"  # the source of a record that none matches: it says what is missing


def parse_records(
    records: Sequence[Any],
    image_dir: Path,
    steps_from: StepsFrom,
    *,
    source: str | None,
    columns: Mapping[str, str] | None,
    answer_type: Judge | None,
) -> Iterator[tuple[str, Example | UserError]]:
    """Of each record what messages call it, and the example, its images unseen, or the reason why it is none.

    Args: see `load.read_examples`.
    """
    ids, parser = _Ids(), RecordParser(image_dir, steps_from, source, columns, answer_type)
    for index in range(len(records)):
        record = parser.renamed(records[index])
        result: Example | UserError
        try:
            result = parser(record, ids.next(record, index))
        except UserError as error:
            result = error
        yield label_of(record, index), result


class RecordParser:
    """Makes examples of records.

    Args: see `load.read_examples`.
    """

    def __init__(
        self,
        image_dir: Path,
        steps_from: StepsFrom,
        source: str | None,
        columns: Mapping[str, str] | None,
        answer_type: Judge | None,
    ):
        if columns and source is None:
            source = _FALLBACK
        asked, image_root = names("sources") if source is None else [source], Path(os.path.abspath(image_dir))
        self.sources: dict[str, Source] = {name: load("sources", name)(image_root, steps_from) for name in asked}
        self.read = {key for chosen in self.sources.values() for key in chosen.keys}
        self.columns = columns
        self.answer_type = answer_type

    def renamed(self, record: Any) -> Any:
        """A record with its columns under the names that a source reads, and of the others those that it reads."""
        columns = self.columns
        if not columns or not isinstance(record, dict):
            return record
        if missing := [key for key, column in columns.items() if column not in record]:
            return UserError(
                f"columns.{missing[0]} is {columns[missing[0]]!r}, and there is no such column: there are "
                f"{', '.join(record):.300}"
            )
        replaced = {*columns, *columns.values()}
        replaced |= {*ID_KEYS} if "id" in columns else set()
        replaced |= {"image"} if "images" in columns else set()
        others = {key: value for key, value in record.items() if key in self.read and key not in replaced}
        return others | {key: record[column] for key, column in columns.items()}

    def __call__(self, record: Any, record_id: str | UserError) -> Example:
        """A renamed record as an example, its images unseen.

        Raises:
            UserError: it is bad; with the reason alone.
        """
        if isinstance(record, UserError):
            raise record
        if not isinstance(record, dict):
            raise UserError(f"must be a JSON object, found {record!r:.60}")
        if isinstance(record_id, UserError):
            raise record_id
        chosen = next((source for source in self.sources.values() if source.matches(record)), None)
        if chosen is None:
            chosen = self.sources.get(_FALLBACK, next(iter(self.sources.values())))
        example = replace(chosen.parse(record, record_id), metric=chosen.metric)
        refuse_unread(record, chosen.keys)
        if self.answer_type is None or example.choices:
            return example
        if self.answer_type == "number" and example.answer is not None and single_number(example.answer) is None:
            raise UserError(f"'answer' must be one number, with answer_type: number, found {example.answer!r:.60}")
        return replace(example, judge=self.answer_type)


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


class _Ids:
    """Different ids for all records, by what stands in the file up to them; a UserError where the given one is none."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._seen: dict[str, int] = {}

    def next(self, record: Any, index: int) -> str | UserError:
        try:
            name = own_id(record, index)
        except UserError as error:
            return error
        unique = name
        while unique in self._taken:
            self._seen[name] = self._seen.get(name, 1) + 1
            unique = f"{name}#{self._seen[name]}"
        self._taken.add(unique)
        return unique
