"""A run's part of the page: what it is, its curves, its stages, its evaluations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import yaml

from multicoco.evaluation.metrics import wilson_interval
from multicoco.report import charts, story
from multicoco.report.charts import Band, Chart, Curve
from multicoco.report.folder import RunFolder
from multicoco.report.tables import Grid, number

_EVALUATION_HEADER = (
    *("evaluation", "stage", "accuracy", "95% interval", "n", "guessing", "unparsed", "cut off"),
    *("tokens written", "latent passes", "seconds"),
)


@dataclass(frozen=True)
class RunPart:
    """What the template shows of a run."""

    name: str
    state: str
    trained: str
    results: list[str]
    made_by: str
    wrong: list[str]
    problems: list[str]
    facts: list[tuple[str, str]]
    charts: list[Chart]
    stages: Grid | None
    hardest: str
    evaluations: Grid | None
    official: Grid | None
    checkpoints: Grid | None
    config: str


def run_part(run: RunFolder) -> RunPart:
    bands = _stage_bands(run)
    by_stage = _by_stage(run)
    return RunPart(
        name=run.name,
        state=story.state_of(run),
        trained=story.trained(run),
        results=story.results(run),
        made_by=story.made_by(run),
        wrong=story.wrong(run),
        problems=run.problems,
        facts=_facts(run),
        charts=_training_charts(run, bands),
        stages=_stages(by_stage),
        hardest=_hardest(by_stage),
        evaluations=_evaluations(run),
        official=_official(run),
        checkpoints=_checkpoints(run),
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
    )


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """The figures that stand large above the text."""
    facts = []
    for mode, summary in list(run.summaries.items())[:4]:
        if summary.get("accuracy") is not None and "intervention" not in summary:
            low, high = summary.get("ci95") or (0, 1)
            facts.append((f"{mode}, {low:.3f} to {high:.3f}", f"{summary['accuracy']:.3f}"))
    if run.newest:
        facts.append(("optimizer steps", f"{run.newest.step:,}"))
    if seconds := story.time_taken(run):
        facts.append(("of training", story.duration(seconds)))
    if run.newest and run.newest.peak_memory:
        facts.append(("at most, of a process", f"{run.newest.peak_memory / 2**30:.1f} GiB"))
    return facts


def _stage_bands(run: RunFolder) -> list[Band]:
    """Of a run with several stages."""
    steps, stages = run.series("train/stage")
    bands: list[Band] = []
    for stage, lines in groupby(zip(steps, stages, strict=True), key=lambda pair: pair[1]):
        own = [step for step, _ in lines]
        bands.append(Band(f"stage {stage:.0f}", bands[-1].end if bands else 0, own[-1]))
    return bands if len({band.name for band in bands}) > 1 else []


def _training_charts(run: RunFolder, bands: Sequence[Band]) -> list[Chart]:
    made = []
    evaluated = [_accuracy_curve(run, mode) for mode in _logged_modes(run)]
    if evaluated := [curve for curve in evaluated if len(curve.x) > 1 or run.newest]:
        note = "Shaded: 95% intervals (Wilson)."
        svg = charts.curves(evaluated, "optimizer steps", "accuracy", bands, top=1.04)
        made.append(Chart("Accuracy after each evaluated epoch", svg, note))
    for key, title, name in (
        ("train/loss", "Loss", "loss per labelled token"),
        ("train/lr", "Learning rate", "learning rate"),
        ("train/tokens_per_s", "Throughput", "tokens per second"),
        ("train/epoch_seconds", "Time of an epoch", "seconds"),
        ("thoughts/norm", "Size of the thoughts", "mean norm"),
        ("thoughts/effective_rank", "Effective rank of the thoughts", "directions they fill"),
    ):
        steps, values = run.series(key)
        if len(steps) > 1:
            svg = charts.curves([Curve(name, steps, values)], "optimizer steps", name, bands)
            made.append(Chart(title, svg))
    return made


def _logged_modes(run: RunFolder) -> list[str]:
    ends = "/accuracy"
    keys = dict.fromkeys(key for line in run.metrics for key in line if key.startswith("eval/") and key.endswith(ends))
    modes = [key.removeprefix("eval/").removesuffix(ends) for key in keys]
    return [mode for mode in modes if "." not in mode]  # with interventions it is a chart of its own


def _accuracy_curve(run: RunFolder, mode: str) -> Curve:
    lines = [line for line in run.metrics if isinstance(line.get(f"eval/{mode}/accuracy"), int | float)]
    accuracies = [line[f"eval/{mode}/accuracy"] for line in lines]
    counts = [int(line.get(f"eval/{mode}/n") or 0) for line in lines]
    intervals = [wilson_interval(round(a * n), n) for a, n in zip(accuracies, counts, strict=True)]
    low, high = zip(*intervals, strict=True) if intervals else ((), ())
    return Curve(mode, [line["step"] for line in lines], accuracies, low, high)


def _by_stage(run: RunFolder) -> dict[int, dict[str, Any]]:
    """What was logged in each stage."""
    by_stage: dict[int, dict[str, Any]] = {}
    ranked_by = _logged_modes(run)[:1]  # the mode by whose accuracy checkpoints are ranked
    stage: int | None = None
    for line in run.metrics:
        if isinstance(line.get("train/stage"), int):
            stage = line["train/stage"]
        if stage is None:
            continue
        of = by_stage.setdefault(stage, {"steps": [], "epochs": set(), "loss": [], "seconds": 0.0, "accuracy": []})
        if "train/lr" in line:
            of["steps"].append(line["step"])
            of["loss"].append(line.get("train/loss"))
            of["epochs"].add(line.get("train/epoch"))
        of["seconds"] += line.get("train/epoch_seconds") or 0.0
        of["accuracy"] += [value for mode in ranked_by if (value := line.get(f"eval/{mode}/accuracy")) is not None]
    return by_stage


def _hardest(by_stage: dict[int, dict[str, Any]]) -> str:
    """Of several stages, in words, the one whose best accuracy is the lowest, else the one that began the lowest."""
    reached = {stage: (max(of["accuracy"]), of["accuracy"][0]) for stage, of in by_stage.items() if of["accuracy"]}
    if len(reached) < 2:
        return ""
    if len({*reached.values()}) > 1:
        stage = min(reached, key=lambda stage: reached[stage])
        best, first = reached[stage]
        return (
            f"The hardest stage was stage {stage}: accuracy {first:.3f} after its first epoch, {best:.3f} at its best."
        )
    text = "No stage stands out: all had the same accuracy after their first epochs, and at their best"
    losses = {stage: known[-1] for stage, of in by_stage.items() if (known := [x for x in of["loss"] if x is not None])}
    if not losses:
        return f"{text}."
    stage = max(losses, key=lambda stage: losses[stage])
    return f"{text}. The loss ended the highest in stage {stage}, at {losses[stage]:.4g}."


def _stages(by_stage: dict[int, dict[str, Any]]) -> Grid | None:
    """What was learned, stage by stage: where a run struggled is to be seen here."""
    if not by_stage:
        return None
    rows, before = [], 0
    for stage, of in by_stage.items():
        losses, accuracies, last = [x for x in of["loss"] if x is not None], of["accuracy"], max(of["steps"])
        rows.append(
            [
                *(str(stage), str(len(of["epochs"])), f"{last - before:,}"),
                *(f"{losses[i]:.4g}" if losses else "" for i in (0, -1)),
                *(f"{pick(accuracies):.3f}" if accuracies else "" for pick in (lambda a: a[0], max, lambda a: a[-1])),
                story.duration(of["seconds"]),
            ]
        )
        before = last
    header = ["stage", "epochs", "steps", "loss, first", "last", "accuracy, first", "best", "last", "time of epochs"]
    return Grid(header, rows)


def side_by_side(runs: Sequence[RunFolder]) -> Grid | None:
    """All evaluations of several runs."""
    rows = [[run.name, *row] for run in runs if (grid := _evaluations(run)) for row in grid.rows]
    return Grid(["run", *_EVALUATION_HEADER], rows) if rows else None


def _evaluations(run: RunFolder) -> Grid | None:
    rows = []
    for mode, s in run.summaries.items():
        low, high = s.get("ci95") or (0.0, 1.0)
        rows.append(
            [
                mode,
                number(s.get("stage"), ".0f"),
                number(s.get("accuracy"), ".3f"),
                f"{low:.3f} to {high:.3f}",
                number(s.get("n"), ",.0f"),
                number(s.get("chance"), ".3f"),
                *(number(s.get(key), ",.0f") for key in ("n_unparsed", "n_truncated")),
                *(number(s.get(key), ".1f") for key in ("mean_new_tokens", "mean_latent_passes", "seconds")),
            ]
        )
    return Grid(_EVALUATION_HEADER, rows) if rows else None


def _official(run: RunFolder) -> Grid | None:
    """What data sets' own evaluations make of the answers (`evaluation.metrics`), a column for each evaluation."""
    found = {
        mode: {key: value for key, value in summary.items() if "/" in key and f"{key}_n" in summary}
        for mode, summary in run.summaries.items()
    }
    modes = [mode for mode, scores in found.items() if scores]
    rows = []
    for key in dict.fromkeys(key for mode in modes for key in found[mode]):
        summaries = [run.summaries[mode] for mode in modes if key in found[mode]]
        counts = dict.fromkeys(number(summary[f"{key}_n"], ",.0f") for summary in summaries)
        rows.append([key, ", ".join(counts), *(number(found[mode].get(key), ".3f") for mode in modes)])
    return Grid(["score", "n", *modes], rows) if rows else None


def _checkpoints(run: RunFolder) -> Grid | None:
    rows = [
        [path.name, str(state.stage), str(state.epoch), f"{state.step:,}", number(state.accuracy, ".3f")]
        for path, state in run.states.items()
    ]
    return Grid(["checkpoint", "stage", "epoch", "step", "accuracy"], rows) if rows else None
