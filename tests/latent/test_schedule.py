"""Schedules: whatever the columns, every one is run, thoughts are filled in in time, and passes are counted."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.curriculum import Fork
from multicoco.latent.schedule import Branched, Jacobi, OnePass, Pass, Sequential, inner_columns


@given(
    length=st.integers(1, 30),
    columns=st.sets(st.integers(1, 29), max_size=6),
    n_passes=st.none() | st.integers(1, 30),
)
def test_in_sequence_a_pass_begins_at_every_latent_column_and_as_many_as_asked(length, columns, n_passes):
    columns = sorted(c for c in columns if c < length)
    if n_passes is not None and not len(columns) < n_passes <= length:
        with pytest.raises(ValueError, match="passes"):
            Sequential().passes(columns, (), length, n_passes)
        return
    passes = Sequential().passes(columns, (), length, n_passes)
    assert [one.start for one in passes] == [0, *(one.end for one in passes[:-1])] and passes[-1].end == length
    assert set(columns) <= {one.start for one in passes if one.fills == 1}
    assert len(passes) == (n_passes or len(columns) + 1)


@given(
    first=st.integers(1, 5),
    n_latent=st.integers(1, 6),
    behind=st.integers(0, 5),
    iterations=st.integers(1, 8),
    more=st.none() | st.integers(-1, 12),
    is_cut=st.booleans(),
)
def test_in_parallel_every_pass_runs_all_latent_columns_again(first, n_latent, behind, iterations, more, is_cut):
    end, length = first + n_latent, first + n_latent + behind
    cuts = [end] * (is_cut and behind > 0)
    fewest = min(iterations, n_latent) + 1 + len(cuts)
    assert Jacobi(iterations).n_passes(n_latent) == fewest - len(cuts)
    n_passes = None if more is None else fewest + more
    spare = first - 1 + behind - len(cuts)
    if more is not None and not 0 <= more <= spare:
        with pytest.raises(ValueError, match="passes"):
            Jacobi(iterations).passes(range(first, end), cuts, length, n_passes)
        return
    passes = Jacobi(iterations).passes(range(first, end), cuts, length, n_passes)
    assert len(passes) == (n_passes or fewest)
    filling = [one for one in passes if one.start == first]
    assert len(filling) == min(iterations, n_latent)
    assert all(one.fills == n_latent and one.end >= end for one in filling)
    assert [one.fills for one in passes if one.start != first] == [0, *[1] * (len(passes) - len(filling) - 1)]
    assert passes[0].start == 0 and passes[-1].end == length
    assert all(after.start in (first, one.end) for one, after in pairwise(passes))
    assert all(one.end <= after.end for one, after in pairwise(passes))
    assert not cuts or end in {one.start for one in passes}


def test_in_parallel_columns_between_latent_ones_are_run_again_too():
    assert Jacobi(2).passes([3, 5], (), 8, None) == [Pass(0, 6), Pass(3, 6, 3), Pass(3, 8, 3)]
    assert Jacobi(2).passes([], (), 8, 3) == Sequential().passes([], (), 8, 3)
    with pytest.raises(ValueError, match="end together"):
        Jacobi(2).passes([3, 5], (4,), 8, None)


def test_in_one_pass_nothing_is_filled_in():
    assert OnePass().passes([3, 4], (), 8, None) == [Pass(0, 8)]
    assert OnePass().passes([3, 4], (), 8, 2) == [Pass(0, 1), Pass(1, 8)]
    assert OnePass().n_passes(5) == 1


def test_inner_columns_are_single_behind_what_is_there_and_neither_first_nor_last():
    assert inner_columns(Sequential().passes([3, 4, 5, 9], (), 12, None)) == {1, 2}  # [5, 9) is wider, 9 is the last
    assert inner_columns(Sequential().passes([1, 2], (), 3, None)) == {1}
    assert inner_columns(Sequential().passes([], (), 3, 3)) == {1}  # a spare one
    assert inner_columns(Jacobi(2).passes([3], (4, 5), 9, None)) == {2}  # 4; 3 is run again
    trunk = Branched(Sequential(), Fork(column=4, branch=7))
    assert inner_columns(trunk.passes([2, 3], (), 11, None)) == {1}
    assert inner_columns([Pass(0, 4), Pass(3, 4, 1), Pass(4, 5), Pass(5, 8)]) == {2}  # 3 is written over
