"""From a file of records to examples, with all that is wrong in one message."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from multicoco.config.data import Judge, StepsFrom
from multicoco.data.example import Example, ImageSource, load_image
from multicoco.data.sources.files import read_records
from multicoco.data.sources.location import Location, locate
from multicoco.data.sources.parse import ReadingOptions, parse_records
from multicoco.errors import UserError

logger = logging.getLogger(__name__)

_SHOWN = 10
_CHUNK = 1024  # records that are held at a time


class Loaded(NamedTuple):
    """What a file of records gave.

    Attributes:
        problems: a line for each bad record.
        checked: how many records were looked at, of `records`.
    """

    examples: list[Example]
    problems: list[str]
    checked: int
    records: int


def load_examples(
    path: Path | Location,
    image_dir: Path,
    steps_from: StepsFrom = "sentences",
    on_bad_record: Literal["error", "skip"] = "error",
    limit: int | None = None,
    verify_images: bool = True,
    *,
    source: str | None = None,
    columns: Mapping[str, str] | None = None,
    answer_type: Judge | None = None,
    verify: Callable[[ImageSource], object] = load_image,
) -> list[Example]:
    """Loads records; their texts are kept as they are, but for outer white space.

    Args:
        on_bad_record: "skip" leaves malformed records and those with a missing or broken image out, with one
            warning.
        image_dir, steps_from, source, columns, answer_type: see `ReadingOptions`.
        path, limit, verify_images, verify: see `read_examples`.

    Returns:
        Examples in the file's order. Where several records share an id, the second one's is "id#2".

    Raises:
        UserError: the file holds no records, no record is good, or any is bad under "error".
    """
    location = path if isinstance(path, Location) else locate("", path)
    options = ReadingOptions(image_dir, steps_from, source, columns, answer_type)
    loaded = read_examples(location, options, limit, verify_images, verify)
    tell_problems(location, loaded.problems, loaded.checked, len(loaded.examples), on_bad_record)
    return loaded.examples


def tell_problems(
    location: Location, problems: Sequence[str], checked: int, n_good: int, on_bad_record: Literal["error", "skip"]
) -> None:
    """Says which of the records that were looked at are bad, if any, and that they are left out.

    Raises:
        UserError: they are not to be left out, or none is left.
    """
    if not problems:
        return
    report = "\n  ".join([f"{location}: {len(problems)} bad of {checked} records", *problems[:_SHOWN]])
    if len(problems) > _SHOWN:
        report += f"\n  and {len(problems) - _SHOWN} more"
    if on_bad_record == "error":
        raise UserError(
            f"{report}\nFix them, say which key is which (columns), or leave them out with on_bad_record: skip"
        )
    if not n_good:
        raise UserError(f"{report}\nNone is left: check that this is the right file and image folder")
    logger.warning("%s\nThey are left out", report)


def read_examples(
    location: Location,
    options: ReadingOptions,
    limit: int | None = None,
    verify_images: bool = True,
    verify: Callable[[ImageSource], object] = load_image,
) -> Loaded:
    """Reads records as examples, and says which are bad.

    Args:
        location: of JSON (a list of records, one record a line, or an object of records by their ids), parquet or
            Arrow, of a data set's folder, or of one on the hub.
        limit: keep the first `limit` good records, and check none after them.
        verify_images: look at every image now rather than in training.
        verify: what looks at an image, by several threads at once; raises UserError if it is none.

    Raises:
        UserError: there are no records.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{location}: the limit of examples must be at least 1, not {limit}")
    records = open_records(location)
    parsed = parse_records(records, options)

    def check(result: Example | UserError) -> Example | UserError:
        try:
            for image in result.images if isinstance(result, Example) and verify_images else ():
                verify(image)
            return result
        except UserError as error:
            return error

    examples: list[Example] = []
    problems: list[str] = []
    checked = 0
    # a bar on a terminal only: in a log a check of seconds to minutes needs none
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=limit or len(records), desc=f"checking {Path(location.place).name}", disable=None) as bar,
    ):
        while checked < len(records) and (limit is None or len(examples) < limit):
            missing = _CHUNK if limit is None else min(_CHUNK, limit - len(examples))
            chunk = list(islice(parsed, missing))
            for (label, _), result in zip(chunk, pool.map(check, [result for _, result in chunk]), strict=True):
                if isinstance(result, UserError):
                    problems.append(f"{label}: {result}")
                else:
                    examples.append(result)
                bar.update()
            checked += len(chunk)
    return Loaded(examples, problems, checked, len(records))


def open_records(location: Location) -> Sequence[Any]:
    """The records of a place, whatever they are.

    Raises:
        UserError: there are none.
    """
    if not location.is_table:
        return read_records(Path(location.place))
    from multicoco.data.sources.tables import TableRecords

    return TableRecords(location)


def require_answers(unanswered: Sequence[Example], of: int, path: Path | Location) -> None:
    """Refuses examples without an answer, from which there is nothing to learn.

    Args:
        unanswered: of so many examples, those that have none.

    Raises:
        UserError: there are any; it names the file and the first of them.
    """
    if n := len(unanswered):
        shown = ", ".join(f"{example.id!r:.60}" for example in unanswered[:_SHOWN]) + (", ..." if n > _SHOWN else "")
        raise UserError(
            f"{path}: {n} of {of} records have no answer to learn (ids {shown}): is it a test split? "
            "Name a file to train on, or take these records out"
        )


def require_steps(examples: Sequence[Example], path: Path | Location, method: str) -> None:
    """Refuses data without any written step, for a method that learns from them.

    Raises:
        UserError: names the file and the method.
    """
    if not any(example.steps for example in examples):
        raise UserError(
            f"{path}: none of {len(examples)} records has written steps, from which {method} learns: name a file with "
            "steps, or another method"
        )
