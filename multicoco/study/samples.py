"""Evaluated run folders, and the questions that several evaluations share."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multicoco.errors import UserError
from multicoco.evaluation.report import read_json_object, read_text
from multicoco.study.statistics import Table

Key = tuple[str, int]  # a question's id, and how many before it in the file had the same

_ASKED = ("question", "choices", "gold")
_FORMS: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: isinstance(value, str | int),
    "question": lambda value: isinstance(value, str),
    "choices": lambda value: isinstance(value, list) and all(isinstance(choice, str) for choice in value),
    "gold": lambda value: value is None or (isinstance(value, str | int) and not isinstance(value, bool)),
    "correct": lambda value: value is None or isinstance(value, bool),
}
"""What a line of a samples file has, if it is whole; gold is a text or the place of a choice."""


@dataclass(frozen=True)
class Evaluation:
    """What a run's newest evaluation in a mode has left.

    Attributes:
        name: `RUN:MODE`.
        summary: of evaluation/<mode>.json.
        file: of the samples.
        samples: the questions with a known answer, in the order of the file.
    """

    name: str
    summary: dict[str, Any]
    file: Path
    samples: dict[Key, dict[str, Any]]


@dataclass(frozen=True)
class Shared:
    """What evaluations have in common.

    Attributes:
        questions: as the first evaluation's samples have them.
        correct: (evaluations, questions).
    """

    questions: list[dict[str, Any]]
    correct: Table


def read_evaluations(name: str) -> list[Evaluation]:
    """The evaluations of `RUN`, a run folder, or the one of `RUN:MODE`.

    Raises:
        UserError: there is none, or its files are damaged or do not belong together.
    """
    run, mode = (name, "") if Path(name).is_dir() or ":" not in name else name.rsplit(":", 1)
    folder = Path(run) / "evaluation"
    modes = sorted(path.stem for path in folder.glob("*.json") if not path.name.startswith("."))
    if not modes:
        raise UserError(f"{run}: no evaluation in {folder}: name the folder of a run that has been evaluated")
    if mode and mode not in modes:
        raise UserError(f"{run} has no evaluation {mode!r}: it has {', '.join(modes)}")
    return [_read_evaluation(Path(run), one, modes) for one in ([mode] if mode else modes)]


def shared_questions(evaluations: Sequence[Evaluation], only_shared: bool = False) -> Shared:
    """Puts evaluations of the same questions side by side.

    Args:
        only_shared: they may have been asked other questions besides.

    Raises:
        UserError: they were asked different questions; the message says what they share.
    """
    first, *others = evaluations
    common = [key for key in first.samples if all(key in other.samples for other in others)]
    for other in others:
        for key in common:
            mine, its = ([evaluation.samples[key][part] for part in _ASKED] for evaluation in (first, other))
            if mine != its:
                raise UserError(
                    f"question {key[0]!r} is not the same in {first.name} and {other.name}: {mine!r:.200} and "
                    f"{its!r:.200}; evaluate both on one file"
                )
    counts = ", ".join(f"{len(evaluation.samples)} of {evaluation.name}" for evaluation in evaluations)
    if not common:
        raise UserError(f"no question with a known answer is shared by {counts}: evaluate them on one file")
    if not only_shared and any(len(evaluation.samples) != len(common) for evaluation in evaluations):
        raise UserError(
            f"not the same questions: {len(common)} are shared, of {counts}; --shared compares on these alone"
        )
    correct = np.array([[evaluation.samples[key]["correct"] for key in common] for evaluation in evaluations])
    return Shared([first.samples[key] for key in common], correct)


def _read_evaluation(run: Path, mode: str, modes: Sequence[str]) -> Evaluation:
    path = run / "evaluation" / f"{mode}.json"
    summary = read_json_object(read_text(path), str(path))
    # `final_no_thoughts.jsonl` is not of a mode `thoughts`
    longer = [f"_{other}" for other in modes if other.endswith(f"_{mode}")]
    candidates = [
        file
        for file in (run / "samples").glob(f"*_{mode}.jsonl")
        if not file.name.startswith(".") and not file.stem.endswith(tuple(longer))
    ]
    accuracy = summary.get("accuracy")
    if accuracy is not None and not (type(accuracy) in (int, float) and 0 <= accuracy <= 1):
        raise UserError(f"{path}: not an evaluation, accuracy is {json.dumps(accuracy):.40}: evaluate again")
    for file in sorted(candidates, key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True):
        samples = dict(_read_samples(file))
        right = sum(sample["correct"] for sample in samples.values())
        if len(samples) == summary.get("n") and right == round((accuracy or 0) * len(samples)):
            return Evaluation(f"{run}:{mode}", summary, file, samples)
    found = ", ".join(sorted(file.name for file in candidates)) or "none"
    raise UserError(
        f"{path}: no samples with its n and accuracy in {run / 'samples'} (of this mode: {found}): evaluate again"
    )


def _read_samples(file: Path) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The samples with a known answer."""
    seen: Counter[str] = Counter()
    lines = read_text(file).rstrip("\n").split("\n")  # not splitlines: an answer may hold U+2028
    for number, line in enumerate(lines if any(lines) else [], start=1):
        sample = read_json_object(line, f"{file}:{number}")
        if problem := _problem(sample):
            raise UserError(f"{file}:{number}: not a line of a samples file, {problem}: evaluate again")
        name = str(sample["id"]).encode("utf-8", "replace").decode()  # it is printed, and may hold half a character
        if sample["correct"] is not None:
            yield (name, seen[name]), {**sample, "id": name}
        seen[name] += 1


def _problem(sample: Mapping[str, Any]) -> str | None:
    if missing := [key for key in _FORMS if key not in sample]:
        return f"{', '.join(missing)} missing"
    wrong = [key for key, is_whole in _FORMS.items() if not is_whole(sample[key])]
    gold, choices = sample["gold"], sample["choices"]
    if not wrong and isinstance(gold, int) and not 0 <= gold < len(choices):
        wrong = ["gold"]
    return f"{wrong[0]} is {json.dumps(sample[wrong[0]]):.40}" if wrong else None
