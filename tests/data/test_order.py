from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multicoco.data.loader import RankBatches
from multicoco.data.order import LaneOrder, grouped, padding_share, shuffled

pairs = st.lists(st.tuples(st.integers(1, 400), st.integers(0, 90)), min_size=1, max_size=80)


def like_aokvqa(n: int, tiles: tuple[int, ...]) -> np.ndarray:
    """Question with choices and the tiles of an image; three rationales and the answer."""
    random = np.random.default_rng(1)
    context = 60 + random.gamma(6, 5, n) + 256 * random.choice(tiles, n)
    written = 8 + sum(random.gamma(5, 3, n) for _ in range(3))
    return np.stack([context, written], axis=1).astype(np.int64)


@given(sizes=pairs, seed=st.text(max_size=4), global_batch=st.integers(1, 20))
def test_it_is_a_permutation_and_a_function_of_its_arguments(sizes, seed, global_batch):
    order = grouped(np.array(sizes), seed, global_batch)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    assert order.tolist() == grouped(np.array(sizes), seed, global_batch).tolist()


@given(
    sizes=pairs,
    seed=st.text(max_size=4),
    batch_size=st.integers(1, 4),
    ranks=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    done=st.integers(0, 8),
)
def test_a_step_sees_the_same_examples_on_any_number_of_ranks_and_after_any_interruption(
    sizes, seed, batch_size, ranks, accumulation, done
):
    n, global_batch = len(sizes), batch_size * ranks * accumulation
    order = grouped(np.array(sizes), seed, global_batch)
    whole = RankBatches(n, global_batch, 0, 1, order=order)[:]
    split = [RankBatches(n, batch_size, rank, ranks, accumulation, done=done, order=order)[:] for rank in range(ranks)]
    for step, batch in enumerate(whole[done:]):
        micro = range(step * accumulation, (step + 1) * accumulation)
        assert [pick for m in micro for batches in split for pick in batches[m]] == batch
    counted = [index for batch in whole for index, counts in batch if counts]
    assert sorted(counted) == list(range(n))


@pytest.mark.parametrize("tiles", [(1,), (13, 13, 7, 5, 10, 3)])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_little_is_padding_on_lengths_like_those_of_aokvqa(tiles, batch_size):
    sizes = like_aokvqa(17056, tiles)
    random, by_length = shuffled(len(sizes), "0/1"), grouped(sizes, "0/1", 128)
    assert padding_share(sizes, by_length, batch_size) < 0.02 < 0.05 < padding_share(sizes, random, batch_size)


def test_epochs_differ_in_their_batches_and_in_what_comes_first():
    sizes = like_aokvqa(2000, (1, 7))
    first, second = (grouped(sizes, f"0/{epoch}", 16) for epoch in (0, 1))
    batches = [{frozenset(order[i : i + 16].tolist()) for i in range(0, 2000, 16)} for order in (first, second)]
    assert not batches[0] & batches[1]
    halves = sizes[first].sum(1)[:1000], sizes[first].sum(1)[1000:]
    assert halves[0].mean() == pytest.approx(halves[1].mean(), rel=0.2)  # long ones are not all at one end


def test_padding_is_what_no_row_fills():
    sizes = np.array([[4, 2], [2, 4], [1, 0]])
    assert padding_share(sizes, np.array([0, 1]), 2) == pytest.approx(1 - 12 / 16)  # 4 before and 4 after
    assert padding_share(sizes, np.array([2]), 1) == 0
    assert padding_share(sizes, np.arange(3), 2) == pytest.approx(
        1 - (12 + 7) / (16 + 12)
    )  # the first fills the last batch


def test_epochs_differ_however_long_the_seed_is():
    assert shuffled(50, "20261125/0").tolist() != shuffled(50, "20261125/1").tolist()
    assert shuffled(50, "0/1").tolist() == torch.randperm(50, generator=torch.Generator().manual_seed(3223344)).tolist()


pieces = st.lists(st.integers(0, 9), min_size=1, max_size=20).filter(sum)
of_lanes = {
    "pieces": pieces,
    "seed": st.text(max_size=12),
    "batch_size": st.integers(1, 4),
    "ranks": st.integers(1, 4),
    "accumulation": st.integers(1, 3),
    "lanes": st.integers(1, 12),
    "buffer": st.integers(1, 40),
}


@given(**of_lanes, done=st.integers(0, 8))
def test_a_stream_has_one_order_on_any_number_of_ranks_and_after_any_interruption(
    pieces, seed, batch_size, ranks, accumulation, lanes, buffer, done
):
    n, global_batch = sum(pieces), batch_size * ranks * accumulation
    given_pieces = np.array(pieces)

    def order() -> LaneOrder:
        return LaneOrder(given_pieces, seed, global_batch, lanes, buffer)

    assert sorted(order()) == list(range(n)) and list(order())[::-1] == order()[::-1]
    whole = RankBatches(n, global_batch, 0, 1, order=order())[:]
    split = [RankBatches(n, batch_size, r, ranks, accumulation, done=done, order=order())[:] for r in range(ranks)]
    for step, batch in enumerate(whole[done:]):
        micro = range(step * accumulation, (step + 1) * accumulation)
        assert [pick for m in micro for batches in split for pick in batches[m]] == batch


@pytest.mark.parametrize("buffer", [8, 400, 2000])
@pytest.mark.parametrize(("ranks", "share"), [(1, 1), (4, 1 / 4), (8, 1 / 8), (16, 1 / 8)])
def test_a_rank_reads_the_lanes_of_its_rows_and_holds_few_pieces(buffer, ranks, share):
    """With the room that it asks for."""
    order = LaneOrder(np.full(100, 50), "0/1", 32, lanes=8, buffer=buffer)
    rows = range(32 // ranks)  # of rank 0
    room = order.pieces_at_once(rows)
    assert room <= 8 * share * (2 + buffer / 8 / 50)
    held, n_read = list[int](), 0
    for step in range(len(order) // 32):
        for row in rows:
            piece = order[step * 32 + row] // 50
            n_read += piece not in held
            held = [*(p for p in held if p != piece), piece][-room:]
    assert 100 * share <= n_read <= 115 * share  # a lane begins and ends within a piece


def test_epochs_of_a_stream_differ_in_their_pieces_and_within_them():
    first, second = (list(LaneOrder(np.full(20, 50), f"0/{epoch}", 8, 4, 200)) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert {i // 50 for i in first[:8]} != {i // 50 for i in second[:8]}
    block = [first[step * 8] % 50 for step in range(25)]  # of a lane, in which it takes two rows a step
    assert len({abs(a - b) for a, b in pairwise(block)}) > 10
