"""Against published examples, and against counting every outcome."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multicoco.study.statistics import compare_paired, holm, mcnemar, newcombe_interval, sign_flip_p


def enumerated_p(differences: list[int]) -> float:
    """The share of all sign assignments whose sum is at least as far from 0."""
    observed = abs(sum(differences))
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(abs(total) >= observed for total in sums) / len(sums)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 3), (7, 1), (2, 9), (12, 0)])
def test_mcnemar_is_the_share_of_outcomes_as_far_out(gained, lost):
    assert mcnemar(gained, lost) == pytest.approx(enumerated_p([1] * gained + [-1] * lost))


def test_mcnemar_has_published_values():
    # the two examples of Fagerland, Lydersen & Laake (2017), Statistical Analysis of Contingency Tables, chapter 8
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar(6, 16) == pytest.approx(0.052479, abs=5e-7)


@given(st.lists(st.integers(-3, 3), max_size=10))
def test_sign_flips_are_all_counted(differences):
    assert sign_flip_p(differences) == pytest.approx(enumerated_p(differences))


@given(st.integers(0, 400), st.integers(0, 400))
def test_with_one_seed_sign_flips_are_mcnemar(gained, lost):
    exact = 2 * sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
    flips = sign_flip_p([1] * gained + [-1] * lost + [0] * 20)
    assert flips == pytest.approx(min(1.0, exact), rel=1e-9) == pytest.approx(mcnemar(gained, lost), rel=1e-9)


def test_a_second_seed_with_the_same_answers_is_no_second_sample():
    differences = np.array([1] * 9 + [-1] * 2 + [0] * 30)
    assert sign_flip_p(3 * differences) == pytest.approx(sign_flip_p(differences))


def test_holm_is_statsmodels_multipletests():
    # version 0.15.0, method="holm"
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.042, 0.001, 0.031, 0.014, 0.007]) == pytest.approx([0.062, 0.005, 0.062, 0.042, 0.028])
    assert holm([0.5, 0.02, 0.5, 0.02]) == pytest.approx([1.0, 0.08, 1.0, 0.08])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_definition_rejects(p_values):
    adjusted = holm(p_values)
    for alpha in (0.01, 0.05, 0.3):
        rejected, left = set(), sorted(range(len(p_values)), key=lambda i: p_values[i])
        while left and p_values[left[0]] * len(left) <= alpha:
            rejected.add(left.pop(0))
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe (1998), his example
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Fagerland, Lydersen & Laake, chapter 8
        ((59, 6, 16, 80), (-0.1186, -0.0046)),  # the same
    ],
)
def test_newcombe_has_published_values(table, expected):
    digits = 5e-4 if table[0] == 1 else 5e-5
    assert newcombe_interval(*table) == pytest.approx(expected, abs=digits)


@given(st.lists(st.integers(0, 60), min_size=4, max_size=4).filter(any))
def test_newcombe_holds_the_difference_and_turns_round(table):
    both, gained, lost, neither = table
    low, high = newcombe_interval(*table)
    assert -1 - 1e-9 <= low <= (gained - lost) / sum(table) + 1e-12 and low <= high <= 1 + 1e-9
    assert newcombe_interval(both, lost, gained, neither) == pytest.approx((-high, -low))


def answers(rng: np.random.Generator, share: float, seeds: int, n: int) -> np.ndarray:
    return rng.random((seeds, n)) < share


def test_one_seed_has_newcombes_interval_and_mcnemars_p():
    rng = np.random.default_rng(1)
    first, second = answers(rng, 0.8, 1, 200), answers(rng, 0.7, 1, 200)
    paired = compare_paired(first, second)
    gained, lost = int((first & ~second).sum()), int((~first & second).sum())
    table = int((first & second).sum()), gained, lost, int((~first & ~second).sum())
    assert (paired.gained, paired.lost, paired.n) == ((gained,), (lost,), 200)
    assert paired.difference == pytest.approx((gained - lost) / 200) == pytest.approx(paired.by_seed[0])
    assert paired.interval == newcombe_interval(*table)
    assert paired.p == pytest.approx(mcnemar(gained, lost)) == pytest.approx(paired.p_by_seed[0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_both_directions_are_one_comparison(seed, seeds):
    rng = np.random.default_rng(seed)
    first, second = answers(rng, 0.6, seeds, 40), answers(rng, 0.5, seeds, 40)
    there, back = compare_paired(first, second), compare_paired(second, first)
    assert there.difference == pytest.approx(-back.difference) and there.p == pytest.approx(back.p)
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=0.05)  # drawn
    assert there.interval[0] <= there.difference + 1e-9 and there.difference <= there.interval[1] + 1e-9


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(2)
    second = answers(rng, 0.6, 3, 300)
    agreeing = answers(rng, 0.7, 3, 300)
    disagreeing = np.stack([answers(rng, share, 1, 300)[0] for share in (0.55, 0.7, 0.85)])
    widths = [high - low for low, high in (compare_paired(first, second).interval for first in (agreeing, disagreeing))]
    assert widths[1] > 1.5 * widths[0]


def test_over_questions_and_seeds_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(20):
        hardness = rng.normal(size=150)
        effects = 0.3 + 0.3 * rng.normal(size=(3, 1))  # of the seeds
        skill = rng.normal(size=(3, 1)) * 0.3
        first = hardness + skill + effects + rng.normal(size=(3, 150)) > 0
        second = hardness + skill + rng.normal(size=(3, 150)) > 0
        low, high = compare_paired(first, second).interval
        held += low <= TRUE_DIFFERENCE <= high
    assert held >= 17  # of 20; it was 189 of 200


# mean of Phi((0.3 + s) / sd) - 1/2 over everything random above, whose variance is 1 + 0.09 + 1, and 0.09 for s
TRUE_DIFFERENCE = 0.5 * math.erf(0.3 / math.sqrt(1 + 0.09 + 1 + 0.09) / math.sqrt(2))


def test_no_difference_anywhere_is_not_certainty():
    same = np.ones((3, 20), dtype=bool)
    paired = compare_paired(same, same)
    assert paired.p == 1 and paired.difference == 0
    assert paired.interval[0] < -0.05 and paired.interval[1] > 0.05


@pytest.mark.parametrize("shape", [(1, 3), (2, 4), (0, 4)])
def test_tables_of_different_questions_are_no_pair(shape):
    with pytest.raises(ValueError, match="tables of seeds and questions"):
        compare_paired(np.ones(shape, dtype=bool), np.ones((1, 4) if shape[0] else (0, 4), dtype=bool))
