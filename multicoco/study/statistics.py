"""Paired comparisons of two answerers on the same questions, of one seed or of several.

What is compared are tables of truth values, one row a seed and one column a question.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest
from scipy.stats import t as student

from multicoco.evaluation.metrics import wilson_interval

Table = NDArray[np.bool_]


@dataclass(frozen=True)
class Paired:
    """A first answerer against a second.

    Attributes:
        difference: the first's accuracy less the second's, the mean over the seeds.
        interval: of the difference, 95%, within -1 and 1: over the questions with one seed (`newcombe_interval`), over
            questions and seeds with more (`interval_over_seeds`).
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
    return _clipped(low, difference + reach(high_1 - share_1, share_2 - low_2))


def interval_over_seeds(differences: NDArray[np.int_]) -> tuple[float, float]:
    """95% interval of the mean difference over questions and seeds, as other questions and other seeds would have it.

    The squared standard errors of two means are added: over the questions, of a question's mean over the seeds, and
    over the seeds, of a seed's mean over the questions. Student's quantile is that of both's degrees of freedom (Welch
    1947, Biometrika 34:28). Luck of both counts in both: the interval is too wide rather than too narrow. One question
    more in favour of each side, in all seeds alike, keeps few differences from looking like certainty (Bonett & Price
    2012, Journal of Educational and Behavioral Statistics 37:479).

    Args:
        differences: 1, 0 or -1, (seeds, questions); at least two seeds.
    """
    favours = np.tile([1, -1], (len(differences), 1))
    table = np.concatenate([differences, favours], axis=1)
    parts = [(means.var(ddof=1) / means.size, means.size - 1) for means in (table.mean(axis=0), table.mean(axis=1))]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    reach = float(student.ppf(0.975, freedom) * math.sqrt(variance))
    centre = float(table.mean())
    return _clipped(centre - reach, centre + reach)


def _clipped(low: float, high: float) -> tuple[float, float]:
    """To what a difference of accuracies can be."""
    return max(-1.0, low), min(1.0, high)


def _interval(first: Table, second: Table) -> tuple[float, float]:
    if len(first) > 1:
        return interval_over_seeds(first.astype(int) - second)
    cells = (first & second, first & ~second, ~first & second, ~first & ~second)
    return newcombe_interval(*(int(cell.sum()) for cell in cells))
