"""From records to examples: which source reads each, under which id, and what messages call it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multicoco.config.data import Judge, StepsFrom
from multicoco.data.example import Example
from multicoco.data.numbers import single_number
from multicoco.data.sources.fields import refuse_unread
from multicoco.data.sources.ids import Numbers, label_of, numbered, own_id
from multicoco.data.sources.source import ID_KEYS, Source
from multicoco.errors import UserError
from multicoco.registry import load, names

_FALLBACK = "records"  # the source of a record that none matches: it says what is missing


@dataclass(frozen=True)
class ReadingOptions:
    """How records become examples.

    Attributes:
        image_dir: images' paths are relative to it; an official A-OKVQA record's is, with .jpg or .png,
            `{split}2017/{image_id:012d}` in it or, where that folder is absent, `{image_id:012d}`.
        steps_from: what of a written reasoning is a step, see `steps.split_reasoning`. Listed steps are kept.
        source: the name of the records' source (`multicoco.registry`); None takes for each record the first source
            that it matches.
        columns: the keys under which records have their "question", "answer", "steps", "choices", "images" or "id",
            where these are others; the source is then "records" unless named, and keys that it does not read are no
            matter.
        answer_type: how answers to open questions are judged; None is as the source says.
    """

    image_dir: Path
    steps_from: StepsFrom = "sentences"
    source: str | None = None
    columns: Mapping[str, str] | None = None
    answer_type: Judge | None = None


def parse_records(records: Sequence[Any], options: ReadingOptions) -> Iterator[tuple[str, Example | UserError]]:
    """Of each record what messages call it, and the example, its images unseen, or the reason why it is none."""
    numbers, parser = Numbers(), RecordParser(options)
    for index in range(len(records)):
        record = parser.renamed(records[index])
        result: Example | UserError
        try:
            name = own_id(record, index)
            result = parser(record, numbered(name, numbers.next(name)))
        except UserError as error:
            result = error
        yield label_of(record, index), result


class RecordParser:
    """Makes examples of records."""

    def __init__(self, options: ReadingOptions):
        source = options.source or (_FALLBACK if options.columns else None)
        asked, image_root = names("sources") if source is None else [source], Path(os.path.abspath(options.image_dir))
        self.sources: dict[str, Source] = {
            name: load("sources", name)(image_root, options.steps_from) for name in asked
        }
        self.read = {key for chosen in self.sources.values() for key in chosen.keys}
        self.columns, self.answer_type = options.columns, options.answer_type

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

    def __call__(self, record: Any, record_id: str) -> Example:
        """A renamed record as an example, its images unseen.

        Raises:
            UserError: it is bad; with the reason alone.
        """
        if isinstance(record, UserError):
            raise record
        if not isinstance(record, dict):
            raise UserError(f"must be a JSON object, found {record!r:.60}")
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
