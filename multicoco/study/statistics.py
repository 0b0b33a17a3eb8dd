"""Paired comparisons of two answerers on the same questions, of one seed or of several.

What is compared are tables of truth values, one row a seed and one column a question.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from multicoco.evaluation.metrics import wilson_interval

_RESAMPLES = 10_000

Table = NDArray[np.bool_]


@dataclass(frozen=True)
class Paired:
    """A first answerer against a second.

    Attributes:
        difference: the first's accuracy less the second's, the mean over the seeds.
        interval: of the difference, 95%: over the questions with one seed, over questions and seeds with more.
        p: two-sided, of the exact test over the questions (`sign_flip_p`).
        n: questions.
        by_seed: the difference of every seed.
        p_by_seed: exact McNemar, of every seed.
        gained, lost: per seed, how many questions the first alone, and the second alone, answers correctly.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    n: int
    by_seed: tuple[float, ...]
    p_by_seed: tuple[float, ...]
    gained: tuple[int, ...]
    lost: tuple[int, ...]


def compare_paired(first: Table, second: Table) -> Paired:
    """Compares two answerers.

    Args:
        first, second: which questions were answered correctly, (seeds, questions) each, in the same order.

    Raises:
        ValueError: the tables differ in their shape, or hold no question.
    """
    if first.shape != second.shape or first.ndim != 2 or not first.size:
        raise ValueError(f"two tables of seeds and questions are compared, not {first.shape} and {second.shape}")
    differences = first.astype(int) - second.astype(int)
    gained, lost = (differences > 0).sum(axis=1), (differences < 0).sum(axis=1)
    return Paired(
        difference=float(differences.mean()),
        interval=_interval(first, second),
        p=sign_flip_p(differences.sum(axis=0)),
        n=first.shape[1],
        by_seed=tuple(differences.mean(axis=1).tolist()),
        p_by_seed=tuple(mcnemar(int(b), int(c)) for b, c in zip(gained, lost, strict=True)),
        gained=tuple(gained.tolist()),
        lost=tuple(lost.tolist()),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: that each discordant question might as well have been of the other kind."""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sign_flip_p(differences: Iterable[int]) -> float:
    """Two-sided p of the exact sign-flip test of whether whole numbers, one a question, have the mean 0.

    The null hypothesis is that the two answerers of a question could have been the other way around, all its seeds
    together: a question is the unit, so more seeds do not make more questions. With one seed it is McNemar's exact
    test. The sum of m's over k questions is m * (2 * Binomial(k, 1/2) - k); over all m's they are convolved.
    """
    values = np.array(list(differences), dtype=int)
    chances = np.ones(1)  # of the sums from -reach to reach
    for size in range(1, int(np.abs(values).max(initial=0)) + 1):
        count = int((np.abs(values) == size).sum())
        own = np.zeros(2 * size * count + 1)
        own[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, own)
    reach = len(chances) // 2
    tail = chances[reach + abs(int(values.sum())) :].sum()
    return min(1.0, 2.0 * float(tail))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values of a family of tests, in the order given: no false finding in the whole family
    with the probability that a single test promises."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def newcombe_interval(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """95% interval of the difference of two paired proportions, (gained - lost) / n: method 10 of Newcombe (1998),
    Statistics in Medicine 17:2635, from the two Wilson intervals and the correlation, corrected for continuity."""
    n = both + gained + lost + neither
    first, second = both + gained, both + lost
    (low_1, high_1), (low_2, high_2) = wilson_interval(first, n), wilson_interval(second, n)
    share_1, share_2 = first / n, second / n
    margins = first * (n - first) * second * (n - second)
    association = float(both * neither - gained * lost)
    if association > 0:
        association = max(association - n / 2, 0.0)
    phi = association / math.sqrt(margins) if margins else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = share_1 - share_2
    low = difference - reach(share_1 - low_1, high_2 - share_2)
    return low, difference + reach(high_1 - share_1, share_2 - low_2)


def _interval(first: Table, second: Table) -> tuple[float, float]:
    by_seed = [
        newcombe_interval(*(int(cell.sum()) for cell in (a & b, a & ~b, ~a & b, ~a & ~b)))
        for a, b in zip(first, second, strict=True)
    ]
    if len(by_seed) == 1:
        return by_seed[0]
    if (first == second).all():  # resampling would find no uncertainty at all
        return min(low for low, _ in by_seed), max(high for _, high in by_seed)
    return _bootstrap_interval(first.astype(float) - second)


def _bootstrap_interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """95% percentile interval of the mean over questions and seeds, both drawn with replacement.

    Few seeds drawn anew vary by (S - 1) / S of what seeds vary by; the deviations of the seeds' means are stretched to
    make up for it. Questions with the same differences are drawn together. The draws are always the same.
    """
    seeds, n = differences.shape
    means = differences.mean(axis=1, keepdims=True)
    differences = differences + (math.sqrt(seeds / (seeds - 1)) - 1) * (means - means.mean())
    kinds, counts = np.unique(differences, axis=1, return_counts=True)
    draw = np.random.default_rng(0)
    drawn_questions = draw.multinomial(n, counts / n, size=_RESAMPLES)
    drawn_seeds = draw.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES)
    drawn_means = ((drawn_questions @ kinds.T) * drawn_seeds).sum(axis=1) / (n * seeds)
    low, high = np.quantile(drawn_means, [0.025, 0.975])
    return float(low), float(high)
