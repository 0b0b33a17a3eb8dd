"""A study's part of the page: the verdict, arms and seeds, differences, interventions, cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from multicoco.errors import UserError
from multicoco.evaluation.report import read_text
from multicoco.report import charts, story
from multicoco.report.charts import Chart, Point
from multicoco.report.folder import RunFolder, is_run, read_run
from multicoco.report.tables import Grid, number
from multicoco.study.compare import DIFFERENCE_HEADER, format_difference
from multicoco.study.schema import UNTOUCHED, PairResult, RunResult, StudyResult

_MARKS = {"held": "✓", "failed": "✗", "undecided": "?", "not measured": "·"}


@dataclass(frozen=True)
class ConditionRow:
    """A condition of the finding, ticked or not; the figures are empty where nothing was measured."""

    outcome: str
    mark: str
    says: str
    figures: str


@dataclass(frozen=True)
class StudyPart:
    """What the template shows of a study."""

    name: str
    about: list[str]
    finding: bool
    readings: list[str]
    conditions: list[ConditionRow]
    refused: list[str]
    charts: list[Chart]
    runs: Grid
    pairs: Grid
    text: str


def study_file(path: Path) -> Path | None:
    """The study.json that a path means, if it means a study."""
    file = path if path.name == "study.json" else path / "study.json"
    return file if file.is_file() else None


def read_study(file: Path) -> StudyResult:
    """Raises: UserError: it is not what a study writes."""
    try:
        return StudyResult.model_validate_json(read_text(file), strict=False)
    except ValidationError as error:
        raise UserError(f"{file} is not what this version's studies write: run `multicoco study` again") from error


def study_part(study: StudyResult) -> StudyPart:
    verdict = study.verdict
    arms = ", ".join(study.arms)
    seeds = sorted({run.seed for run in study.runs})
    return StudyPart(
        name=study.name,
        about=[
            f"Arms: {arms}. Seeds with results: {', '.join(map(str, seeds)) or 'none yet'}. From {study.file}.",
            *(f"Trained by {story.software(environment)}." for environment in study.environments),
        ],
        finding=bool(verdict.get("finding")),
        readings=[str(reading) for reading in verdict.get("readings", [])],
        conditions=[_condition(condition) for condition in verdict.get("conditions", [])],
        refused=study.refused,
        charts=[*_accuracy_charts(study), *_difference_charts(study), *_cost_charts(study)],
        runs=_runs(study),
        pairs=_pairs(study),
        text=study.text,
    )


def _condition(condition: dict[str, Any]) -> ConditionRow:
    outcome = str(condition.get("outcome"))
    return ConditionRow(
        outcome, _MARKS.get(outcome, "?"), str(condition.get("says")), _figures(condition.get("measured"))
    )


def _figures(measured: dict[str, Any] | None) -> str:
    if not measured:
        return ""
    paired = measured["paired"]
    low, high = paired["interval"]
    each = " ".join(f"{difference:+.3f}" for difference in paired["by_seed"])
    return (
        f"{paired['difference']:+.3f} (95% interval {low:+.3f} to {high:+.3f}), p by Holm {measured['p_holm']:.2g}; by "
        f"seed {each}"
    )


def _beyond(study: StudyResult) -> dict[str, bool]:
    """Test set -> whether it is out of distribution, those within first."""
    tests = study.spec.get("tests") or dict.fromkeys(run.test for run in study.runs)
    beyond = {name: bool((spec or {}).get("out_of_distribution")) for name, spec in dict(tests).items()}
    return dict(sorted(beyond.items(), key=lambda item: item[1]))


def _accuracy_charts(study: StudyResult) -> Iterator[Chart]:
    for test, is_beyond in _beyond(study).items():
        runs = [run for run in study.runs if (run.test, run.intervention) == (test, UNTOUCHED)]
        points = [Point(arm, _mean(own), None, _accuracies(own)) for arm, own in _by_arm(runs).items()]
        if points:
            chance = runs[0].chance
            note = "A dot is a seed, the bar their mean." + ("" if chance is None else " Dashed: guessing.")
            where = "out of distribution" if is_beyond else "in distribution"
            svg = charts.rows(points, "accuracy", (0, 1.02), mark=chance)
            yield Chart(f"Arms on {test} ({where})", svg, note)


def _by_arm(runs: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    found: dict[str, list[RunResult]] = {}
    for run in runs:
        found.setdefault(run.arm, []).append(run)
    return found


def _accuracies(runs: Sequence[RunResult]) -> list[float]:
    return [run.accuracy for run in runs if run.accuracy is not None]


def _mean(runs: Sequence[RunResult]) -> float | None:
    return fmean(accuracies) if (accuracies := _accuracies(runs)) else None


def _difference_charts(study: StudyResult) -> Iterator[Chart]:
    note = "Bars: 95% intervals of the paired difference; dots: seeds."
    for test in _beyond(study):
        arms = [pair for pair in study.pairs if (pair.kind, pair.test) == ("arms", test)]
        if arms:
            points = [Point(f"{p.first} - {p.second}", p.difference, p.ci95, p.by_seed) for p in arms]
            yield Chart(
                f"Arms against each other on {test}", charts.rows(points, "difference in accuracy", mark=0), note
            )
    changed = [pair for pair in study.pairs if pair.kind == "intervention"]
    for arm in dict.fromkeys(pair.first for pair in changed):
        points = [_changed(pair) for pair in changed if pair.first == arm]
        svg = charts.rows(points, "accuracy with it, less without", mark=0)
        yield Chart(f"Interventions on the thoughts of {arm}", svg, f"{note} Left of the line: it hurts.")


def _changed(pair: PairResult) -> Point:
    """A pair is untouched less touched; what is shown is what the intervention does."""
    low, high = pair.ci95
    name = pair.second.removeprefix(f"{pair.first} under ")
    return Point(name, -pair.difference, (-high, -low), [-difference for difference in pair.by_seed], pair.test)


def _cost_charts(study: StudyResult) -> Iterator[Chart]:
    within = [test for test, is_beyond in _beyond(study).items() if not is_beyond][:1]
    runs = [run for run in study.runs if run.test in within and run.intervention == UNTOUCHED]
    for key, name in (
        ("mean_latent_passes", "latent passes a question"),
        ("mean_new_tokens", "tokens written a question"),
        ("evaluation_seconds", "seconds for all questions"),
    ):
        points = [
            (run.arm, cost, run.accuracy)
            for run in runs
            if (cost := getattr(run, key)) is not None and run.accuracy is not None
        ]
        if points:
            yield Chart(
                f"Accuracy against {name.split(' a ')[0].split(' for ')[0]}", charts.scatter(points, name, "accuracy")
            )


def _runs(study: StudyResult) -> Grid:
    header = ["test set", "arm", "seed", "thoughts", "accuracy", "95% interval", "n", "guessing"]
    rows = [
        [
            *(run.test, run.arm, str(run.seed), run.intervention, number(run.accuracy, ".3f")),
            "{:.3f} to {:.3f}".format(*run.ci95),
            *(str(run.n), number(run.chance, ".3f"), f"{run.steps:,}", f"{run.tokens:,}", f"{run.passes:,}"),
            f"{run.peak_memory / 2**30:.1f} GiB",
            *(number(run.mean_new_tokens, ".1f"), number(run.mean_latent_passes, ".1f")),
            *(story.duration(run.train_seconds), number(run.evaluation_seconds, ".1f")),
        ]
        for run in study.runs
    ]
    header += ["steps", "tokens trained on", "passes in training", "at most, of a process", "tokens written"]
    return Grid([*header, "latent passes", "time of training", "seconds to answer"], rows)


def _pairs(study: StudyResult) -> Grid:
    header = ["test set", "first", "second", *DIFFERENCE_HEADER, "by seed", "McNemar p by seed", "gained", "lost"]
    rows = [
        [
            *(pair.test, pair.first, pair.second),
            *format_difference(pair.difference, pair.ci95, pair.p, pair.p_holm),
            " ".join(f"{difference:+.3f}" for difference in pair.by_seed),
            " ".join(f"{p:.2g}" for p in pair.p_by_seed),
            *(" ".join(map(str, counts)) for counts in (pair.gained, pair.lost)),
        ]
        for pair in study.pairs
    ]
    return Grid(header, rows)


def evaluated_runs(study: StudyResult, folder: Path) -> list[tuple[str, RunFolder]]:
    """Of every arm, the first seed's evaluation on the first test set in distribution, whose answers are shown."""
    within = [test for test, is_beyond in _beyond(study).items() if not is_beyond][:1]
    found = []
    for arm in study.arms:
        runs = [run for run in study.runs if (run.arm, run.intervention) == (arm, UNTOUCHED) and run.test in within]
        first = min(runs, key=lambda run: run.seed, default=None)
        if first is not None and first.folder and is_run(folder / first.folder):
            found.append((arm, read_run(folder / first.folder)))
    return found
