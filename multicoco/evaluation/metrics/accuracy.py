"""Accuracy with its uncertainty, and what it cost in tokens."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import Any

from multicoco.evaluation.guessing import chance


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927), sound for small n and proportions near 0 and 1.

    Returns: (low, high); (0, 1) for n = 0.
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.975)
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # to the digit at the ends, where rounding leaves a trace of what is 0
    return (max(0.0, centre - margin) if correct else 0.0), (min(1.0, centre + margin) if correct < n else 1.0)


def summarize(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums up samples (see `evaluate`): those with a known answer make the accuracy, all of them the means.

    n_unparsed counts texts without a clear answer, n_truncated those that ended at their limit (samples of before have
    no "truncated"). chance is the accuracy of guessing, see `guessing.chance`.
    """
    marked = [sample for sample in samples if sample["correct"] is not None]
    correct = sum(sample["correct"] for sample in marked)
    return {
        "accuracy": correct / len(marked) if marked else None,
        "n": len(marked),
        "ci95": list(wilson_interval(correct, len(marked))),
        "chance": chance(samples),
        "mean_new_tokens": fmean(sample["new_tokens"] for sample in samples) if samples else None,
        "mean_latent_passes": fmean(sample["latent_passes"] for sample in samples) if samples else None,
        "n_unparsed": sum(sample["extracted"] is None for sample in samples),
        "n_truncated": sum(sample.get("truncated", False) for sample in samples),
    }
