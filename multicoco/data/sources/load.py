"""From a file of records to examples, with all that is wrong in one message."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from multicoco.data.example import Example, Judge, load_image
from multicoco.data.numbers import single_number
from multicoco.data.sources.fields import refuse_unread, text_or_number
from multicoco.data.sources.files import read_records
from multicoco.data.sources.source import ID_KEYS, Source, StepsFrom
from multicoco.errors import UserError
from multicoco.registry import load, names

logger = logging.getLogger(__name__)

_FALLBACK = "records"  # the source of a record that none matches: it says what is missing
_SHOWN = 10


def load_examples(
    path: Path,
    image_dir: Path,
    steps_from: StepsFrom = "sentences",
    on_bad_record: Literal["error", "skip"] = "error",
    limit: int | None = None,
    verify_images: bool = True,
    *,
    source: str | None = None,
    answer_type: Judge | None = None,
) -> list[Example]:
    """Loads the records of a JSON or JSON Lines file; their texts are kept as they are, but for outer white space.

    Args:
        path: a JSON list of records, one record a line, or an object of records by their ids.
        image_dir: images' paths are relative to it; an official A-OKVQA record's is, with .jpg or .png,
            `{split}2017/{image_id:012d}` in it or, where that folder is absent, `{image_id:012d}`.
        steps_from: the steps of a record with rationales (A-OKVQA, ScienceQA) are the sentences of the first one, or
            all of them. Other records keep their steps.
        on_bad_record: "skip" leaves malformed records and those with a missing or broken image out, with one
            warning.
        limit: keep the first `limit` good records, and check none after them.
        verify_images: decode every image now rather than in training.
        source: the name of the records' source (`multicoco.registry`); None takes for each record the first source
            that it matches.
        answer_type: how answers to open questions are judged; None is as the source says.

    Returns:
        Examples in the file's order. Where several records share an id, the second one's is "id#2".

    Raises:
        UserError: the file holds no records, no record is good, or any is bad under "error".
    """
    if limit is not None and limit < 1:
        raise UserError(f"{path}: the limit of examples must be at least 1, not {limit}")
    records = read_records(path)
    ids = _ids(records)
    image_root = Path(os.path.abspath(image_dir))
    asked = names("sources") if source is None else [source]
    sources = {name: load("sources", name)(image_root, steps_from) for name in asked}

    def check(index: int) -> Example | UserError:
        try:
            example = _parse(records[index], ids[index], sources, answer_type)
            for image in example.images if verify_images else ():
                load_image(image)
            return example
        except UserError as error:
            return error

    examples: list[Example] = []
    problems: list[str] = []
    checked = 0
    # a bar on a terminal only: in a log a check of seconds to minutes needs none
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=limit or len(records), desc=f"checking {path.name}", disable=None) as bar,
    ):
        while checked < len(records) and (limit is None or len(examples) < limit):
            missing = len(records) if limit is None else limit - len(examples)
            batch = range(checked, min(checked + missing, len(records)))
            for index, result in zip(batch, pool.map(check, batch), strict=True):
                if isinstance(result, UserError):
                    problems.append(f"{_label(records[index], index)}: {result}")
                else:
                    examples.append(result)
                bar.update()
            checked = batch.stop

    if problems:
        report = "\n  ".join([f"{path}: {len(problems)} bad of {checked} records", *problems[:_SHOWN]])
        if len(problems) > _SHOWN:
            report += f"\n  and {len(problems) - _SHOWN} more"
        if on_bad_record == "error":
            raise UserError(f"{report}\nFix them, or leave them out with on_bad_record: skip")
        if not examples:
            raise UserError(f"{report}\nNone is left: check that this is the right file and image folder")
        logger.warning("%s\nThey are left out", report)
    return examples


def require_answers(examples: Sequence[Example], path: Path) -> None:
    """Refuses examples without an answer, from which there is nothing to learn.

    Raises:
        UserError: there are any; it names the file and the first of them.
    """
    ids = [example.id for example in examples if example.answer is None]
    if ids:
        shown = ", ".join(f"{example_id!r:.60}" for example_id in ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
        raise UserError(
            f"{path}: {len(ids)} of {len(examples)} records have no answer to learn (ids {shown}): is it a test split? "
            "Name a file to train on, or take these records out"
        )


def require_steps(examples: Sequence[Example], path: Path, method: str) -> None:
    """Refuses data without any written step, for a method that learns from them.

    Raises:
        UserError: names the file and the method.
    """
    if not any(example.steps for example in examples):
        raise UserError(
            f"{path}: none of {len(examples)} records has written steps, from which {method} learns: name a file with "
            "steps, or another method"
        )


def _parse(record: Any, record_id: str | UserError, sources: dict[str, Source], answer_type: Judge | None) -> Example:
    """One record as an example; UserError with the reason alone where it is bad."""
    if isinstance(record, UserError):
        raise record
    if not isinstance(record, dict):
        raise UserError(f"must be a JSON object, found {record!r:.60}")
    if isinstance(record_id, UserError):
        raise record_id
    chosen = next((source for source in sources.values() if source.matches(record)), None)
    if chosen is None:
        chosen = sources.get(_FALLBACK, next(iter(sources.values())))
    example = chosen.parse(record, record_id)
    refuse_unread(record, chosen.keys)
    if answer_type is None or example.choices:
        return example
    if answer_type == "number" and example.answer is not None and single_number(example.answer) is None:
        raise UserError(f"'answer' must be one number, with answer_type: number, found {example.answer!r:.60}")
    return replace(example, judge=answer_type)


def _given_id(record: Any, index: int) -> tuple[str, Any]:
    """Key and value of the record's own id, else its place in the file."""
    own = [(key, record.get(key)) for key in ID_KEYS] if isinstance(record, dict) else []
    return next((item for item in own if item[1] not in (None, "")), ("place", index))


def _label(record: Any, index: int) -> str:
    key, given = _given_id(record, index)
    return f"record {index}" if key == "place" else f"record {index} (id {given!r:.60})"


def _ids(records: Sequence[Any]) -> list[str | UserError]:
    """Different ids for all records, by what stands in the file alone; a UserError where the given one is no id."""
    ids: list[str | UserError] = []
    taken: set[str] = set()
    seen: dict[str, int] = {}
    for index, record in enumerate(records):
        key, given = _given_id(record, index)
        try:
            name = text_or_number(given, key)
        except UserError as error:
            ids.append(error)
            continue
        unique = name
        while unique in taken:
            seen[name] = seen.get(name, 1) + 1
            unique = f"{name}#{seen[name]}"
        taken.add(unique)
        ids.append(unique)
    return ids
