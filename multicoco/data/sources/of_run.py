"""The records of a run, read as its config says: of one place, or of a mixture of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multicoco.data.example import Example
from multicoco.data.sources.load import Loaded, load_examples, read_examples
from multicoco.data.sources.location import Location, locate
from multicoco.data.sources.mixture import Part, read_parts, weighted, with_own_ids
from multicoco.errors import UserError

if TYPE_CHECKING:  # the config itself asks the methods that others bring
    from multicoco.config import RunConfig


def load_of_run(config: RunConfig, path: str, limit: int | None, **changes: Any) -> list[Example]:
    """The examples of a run's `train_path` or `val_path`.

    Args:
        limit: the first so many are kept.
        changes: other arguments of `load_examples` than the config's.

    Raises:
        UserError: see `load_examples` and `read_parts`; or questions are to be asked without their choices and have no
            other answers.
    """
    mixed = []
    parts = _parts(config, path)
    for part, location in parts:
        arguments = {"on_bad_record": config.on_bad_record, **_how(config, part), "limit": _limit(limit, parts)}
        examples = load_examples(location, **(arguments | changes))
        mixed.append(weighted(_as_asked(examples, location, _direct(config, part)), part.weight))
    return _mixed(mixed, limit)


def read_of_run(config: RunConfig, path: str, limit: int | None) -> Loaded:
    """As `load_of_run`, with what is bad beside what is good."""
    mixed, problems, checked, records = [], [], 0, 0
    parts = _parts(config, path)
    for part, location in parts:
        read = read_examples(location, limit=_limit(limit, parts), verify_images=True, **_how(config, part))
        mixed.append(weighted(_as_asked(read.examples, location, _direct(config, part)), part.weight))
        problems += [f"{location}: {problem}" if len(parts) > 1 else problem for problem in read.problems]
        checked, records = checked + read.checked, records + read.records
    return Loaded(_mixed(mixed, limit), problems, checked, records)


def _limit(limit: int | None, parts: Sequence[tuple[Part, Location]]) -> int | None:
    """Of a set: it is the mixture that is cut, once it is whole."""
    return limit if len(parts) == 1 and parts[0][0].weight == 1 else None


def _mixed(parts: Sequence[list[Example]], limit: int | None) -> list[Example]:
    return (with_own_ids(chain(*parts)) if len(parts) > 1 else parts[0])[:limit]


def _parts(config: RunConfig, path: str) -> list[tuple[Part, Location]]:
    location = locate(config.data_dir, path)
    if not location.is_mixture:
        return [(Part(path=path), location)]
    return [(part, part.location(Path(location.place).parent)) for part in read_parts(location)]


def _how(config: RunConfig, part: Part) -> dict[str, Any]:
    """Arguments of `load_examples`: the part's where it says something, else the run's."""
    own = {key: value for key in ("source", "steps_from", "answer_type") if (value := getattr(part, key)) is not None}
    return {
        "image_dir": Path(part.image_dir or config.image_dir or config.data_dir),
        "steps_from": config.steps_from,
        "source": config.source,
        "columns": config.columns.named if part.columns is None else part.columns.named,
        "answer_type": config.answer_type,
    } | own


def how_to_read(config: RunConfig) -> dict[str, Any]:
    """Arguments of `parse_records`, and of RecordParser, for a `train_path` that is no mixture."""
    return _how(config, Part(path=str(config.train_path)))


def _direct(config: RunConfig, part: Part) -> bool:
    return config.direct_answers if part.direct_answers is None else part.direct_answers


def _as_asked(examples: Sequence[Example], location: Location, direct_answers: bool) -> Sequence[Example]:
    if not direct_answers:
        return examples
    openly = []
    for example in examples:
        try:
            openly.append(asked_openly(example))
        except UserError as error:
            raise UserError(f"{location}: record {example.id!r:.60} {error}") from error
    return openly


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
