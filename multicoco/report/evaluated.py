"""Charts of what was answered: interventions, calibration, groups of questions."""

from collections.abc import Sequence

import numpy as np

from multicoco.evaluation.metrics import wilson_interval
from multicoco.report import charts
from multicoco.report.answers import Answered, Table, untouched
from multicoco.report.charts import Chart, Curve, Point
from multicoco.study.statistics import compare_paired

_BINS = 10
_MOST_GROUPED = 6  # evaluations side by side in a chart of groups


def interventions(answered: Sequence[Answered]) -> list[Chart]:
    """What each intervention changes, against the same questions untouched."""
    points = []
    for changed, place in zip(answered, untouched(answered), strict=True):
        if place is None:
            continue
        before = answered[place]
        keys = [key for key in before.samples if None not in (before.right(key), changed.right(key))]
        if keys:
            with_it, without = (np.array([[bool(a.right(key)) for key in keys]]) for a in (changed, before))
            paired = compare_paired(with_it, without)
            points.append(Point(str(changed.summary["intervention"]), paired.difference, paired.interval))
    if not points:
        return []
    svg = charts.rows(points, "accuracy with it, less without", mark=0)
    note = "Bars: 95% intervals of the paired difference (Newcombe). Left of the line: it hurts."
    return [Chart("Interventions on the thoughts", svg, note)]


def answer_charts(answered: Sequence[Answered], table: Table) -> list[Chart]:
    """Calibration, and accuracy by group, of all evaluations without interventions."""
    plain = [evaluation for evaluation in answered if "intervention" not in evaluation.summary]
    made = []
    if lines := [curve for evaluation in plain if (curve := _calibration(evaluation))]:
        note = "On the dashed line the model is as sure as it is right; bars: 95% intervals (Wilson)."
        made.append(Chart("Calibration", charts.reliability(lines), note))
    made += _thoughts(answered)
    for name, values in table.groups.items():
        points = []
        for group in table.content["groups"][name]:
            keys = [key for key, value in values.items() if value == group]
            for evaluation in plain[:_MOST_GROUPED]:
                known = [right for key in keys if (right := evaluation.right(key)) is not None]
                if known:
                    interval = wilson_interval(sum(known), len(known))
                    points.append(
                        Point(f"{group} (n = {len(keys)})", sum(known) / len(known), interval, (), evaluation.name)
                    )
        if points:
            made.append(Chart(f"Accuracy by {name}", charts.rows(points, "accuracy", (0, 1.02))))
    return made


def _thoughts(answered: Sequence[Answered]) -> list[Chart]:
    """What the k-th thoughts of all questions have in common."""
    seen = [(one.name, one.thoughts.positions) for one in answered if one.thoughts]
    if not seen:
        return []
    ranks = [Curve(name, [p.position for p in all_], [p.effective_rank for p in all_]) for name, all_ in seen]
    alike = [
        Curve(name, [p.position for p in known], [p.mean_similarity for p in known])
        for name, all_ in seen
        if (known := [p for p in all_ if np.isfinite(p.mean_similarity)])
    ]
    note = "One direction: every question thinks the same."
    made = [Chart("Effective rank, by thought", charts.curves(ranks, "thought", "directions they fill"), note)]
    if alike:
        svg = charts.curves(alike, "thought", "mean cosine of two questions'", top=1.04)
        made.append(Chart("How alike the thoughts of two questions are", svg))
    return made


def _calibration(evaluation: Answered) -> Curve | None:
    """By how likely the likeliest choice was, in bins of equal width; its probability is among the choices."""
    sure: list[tuple[float, bool]] = []
    for key, sample in evaluation.samples.items():
        logprobs, gold = sample.get("choice_logprobs"), key[3]
        if not logprobs or not isinstance(gold, int):
            continue
        chances = np.exp(np.array(logprobs) - max(logprobs))
        sure.append((float(chances.max() / chances.sum()), int(np.argmax(chances)) == gold))
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for chance, right in sure:
        bins[min(int(chance * _BINS), _BINS - 1)].append((chance, right))
    full = [own for own in bins if own]
    if not full:
        return None
    x = [sum(chance for chance, _ in own) / len(own) for own in full]
    y = [sum(right for _, right in own) / len(own) for own in full]
    intervals = [wilson_interval(sum(right for _, right in own), len(own)) for own in full]
    error = sum(len(own) * abs(a - b) for own, a, b in zip(full, x, y, strict=True)) / len(sure)
    low, high = zip(*intervals, strict=True)
    return Curve(f"{evaluation.name} (error {error:.3f})", x, y, low, high)
