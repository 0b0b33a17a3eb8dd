"""Official scores: what a data set's own evaluation makes of the answers, beside the accuracy that all sets have."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from multicoco.data.example import Example
from multicoco.registry import load

Sample = Mapping[str, Any]  # a line of a samples file
Answered = tuple[Example, Sample]


class Metric:
    """One data set's own evaluation."""

    def scores(self, answered: Sequence[Answered]) -> dict[str, tuple[float, int]]:
        """By the score's name: a share of 1, and of how many questions; none without a question that it is of."""
        raise NotImplementedError

    def predictions(self, answered: Sequence[Answered]) -> dict[str, Any] | None:
        """What the data set's own evaluation reads, as JSON; None where it reads no file of a fixed form."""
        return None


def mean(values: Sequence[float]) -> tuple[float, int] | None:
    """With its n; None of nothing."""
    return (sum(values) / len(values), len(values)) if values else None


def official_scores(samples: Sequence[Sample], examples: Sequence[Example]) -> dict[str, float | int]:
    """All scores of the data sets among the examples, such as "aokvqa/multiple_choice", each with its n as "..._n".

    Args:
        samples: one of each example, in their order.
    """
    scores: dict[str, float | int] = {}
    for name, metric, answered in _by_metric(samples, examples):
        for key, (score, n) in metric.scores(answered).items():
            scores |= {f"{name}/{key}": score, f"{name}/{key}_n": n}
    return scores


def official_predictions(samples: Sequence[Sample], examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """The files of predictions by the names of their metrics, see `Metric.predictions`."""
    files = {name: metric.predictions(answered) for name, metric, answered in _by_metric(samples, examples)}
    return {name: file for name, file in files.items() if file}


def _by_metric(samples: Sequence[Sample], examples: Sequence[Example]) -> list[tuple[str, Metric, list[Answered]]]:
    answered: dict[str, list[Answered]] = {}
    for example, sample in zip(examples, samples, strict=True):
        if example.metric is not None:
            answered.setdefault(example.metric, []).append((example, sample))
    found: dict[str, Callable[[], Metric]] = {name: load("metrics", name) for name in answered}
    return [(name, found[name](), answered[name]) for name in answered]
