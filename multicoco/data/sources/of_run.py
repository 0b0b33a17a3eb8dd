"""The records of a run, read as its config says: of one place, or of a mixture of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from multicoco.data.example import Example, ImageSource, load_image
from multicoco.data.sources.load import Loaded, read_examples, tell_problems
from multicoco.data.sources.location import Location, locate
from multicoco.data.sources.mixture import Part, read_parts, weighted, with_own_ids
from multicoco.data.sources.parse import ReadingOptions
from multicoco.errors import UserError

if TYPE_CHECKING:  # the config itself asks the methods that others bring
    from multicoco.config import RunConfig


def load_of_run(
    config: RunConfig,
    path: str,
    limit: int | None,
    *,
    on_bad_record: Literal["error", "skip"] | None = None,
    verify_images: bool = True,
    verify: Callable[[ImageSource], object] = load_image,
) -> list[Example]:
    """The examples of a run's `train_path` or `val_path`.

    Args:
        limit: the first so many are kept.
        on_bad_record: None: as the config says.
        verify_images, verify: as of `read_examples`.

    Raises:
        UserError: see `load_examples` and `read_parts`; or questions are to be asked without their choices and have no
            other answers.
    """
    parts = parts_of(config, path)
    mixed = []
    for part, location in parts:
        options = how_to_read(config, part)
        read = read_examples(location, options, limit_of_part(limit, parts), verify_images, verify)
        bad = on_bad_record or config.on_bad_record
        tell_problems(location, read.problems, read.checked, len(read.examples), bad)
        mixed.append(_as_mixed(config, part, location, read.examples))
    return _mixed(mixed, limit)


def read_of_run(config: RunConfig, path: str, limit: int | None) -> Loaded:
    """As `load_of_run`, with what is bad beside what is good."""
    mixed, problems, checked, records = [], [], 0, 0
    parts = parts_of(config, path)
    for part, location in parts:
        read = read_examples(location, how_to_read(config, part), limit_of_part(limit, parts))
        mixed.append(_as_mixed(config, part, location, read.examples))
        problems += [f"{location}: {problem}" if len(parts) > 1 else problem for problem in read.problems]
        checked, records = checked + read.checked, records + read.records
    return Loaded(_mixed(mixed, limit), problems, checked, records)


def limit_of_part(limit: int | None, parts: Sequence[tuple[Part, Location]]) -> int | None:
    """Of a set: it is the mixture that is cut, once it is whole."""
    return limit if is_one(parts) else None


def is_one(parts: Sequence[tuple[Part, Location]]) -> bool:
    """Whether there is nothing to mix."""
    return len(parts) == 1 and parts[0][0].weight == 1


def _mixed(parts: Sequence[list[Example]], limit: int | None) -> list[Example]:
    return (with_own_ids([*chain(*parts)]) if len(parts) > 1 else parts[0])[:limit]


def parts_of(config: RunConfig, path: str) -> list[tuple[Part, Location]]:
    """The sets of a mixture; of another place, itself with the weight 1.

    Raises:
        UserError: as `read_parts`.
    """
    location = locate(config.data_dir, path)
    if not location.is_mixture:
        return [(Part(path=path), location)]
    return [(part, part.location(Path(location.place).parent)) for part in read_parts(location)]


def how_to_read(config: RunConfig, part: Part) -> ReadingOptions:
    """The part's options where it says something, else the run's."""
    return ReadingOptions(
        image_dir=Path(part.image_dir or config.image_dir or config.data_dir),
        steps_from=part.steps_from or config.steps_from,
        source=part.source or config.source,
        columns=(config.columns if part.columns is None else part.columns).named,
        answer_type=part.answer_type or config.answer_type,
    )


def asks_openly(config: RunConfig, part: Part) -> bool:
    """Whether questions are asked without their choices."""
    return config.direct_answers if part.direct_answers is None else part.direct_answers


def _as_mixed(config: RunConfig, part: Part, location: Location, examples: list[Example]) -> list[Example]:
    """As they are asked, each as often as its weight says."""
    asked = [as_asked(example, location) for example in examples] if asks_openly(config, part) else examples
    return weighted(asked, part.weight)


def as_asked(example: Example, location: Location) -> Example:
    """Without its choices.

    Raises:
        UserError: as `asked_openly`; names the place and the record.
    """
    try:
        return asked_openly(example)
    except UserError as error:
        raise UserError(f"{location}: record {example.id!r:.60} {error}") from error


def asked_openly(example: Example) -> Example:
    """Without its choices, as `direct_answers` wants it; the answer to learn is what most annotators gave, of several
    the first.

    Raises:
        UserError: there are no annotators' answers; with the reason alone.
    """
    given, answer = example.direct_answers, example.answer
    if example.choices and answer is not None:
        if not given:
            raise UserError(
                "has no direct answers of annotators, and direct_answers is true: set it to false, or name a file with "
                "them"
            )
        answer = max(given, key=given.count)
    return replace(example, choices=(), answer_index=None, answer=answer)
