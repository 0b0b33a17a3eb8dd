import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.data.loader import RankBatches
from multicoco.data.order import grouped, padding_share, shuffled

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
    n, given_sizes = len(sizes), np.array(sizes)
    whole = RankBatches(n, batch_size * ranks * accumulation, 0, 1, 1, seed, sizes=given_sizes)[:]
    split = [
        RankBatches(n, batch_size, rank, ranks, accumulation, seed, done, sizes=given_sizes)[:] for rank in range(ranks)
    ]
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
