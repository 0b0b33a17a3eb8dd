"""In which order an epoch sees its examples: a function of the seed, the examples and the global batch alone, so that
it is the same on any number of ranks."""

import numpy as np
import torch
from numpy.typing import NDArray

Sizes = NDArray[np.int64]  # (n, 2): of each example, its columns before those that a batch lines up, and from there on

POOL = 4096  # examples among which those of like size are looked for; other ones in every epoch
POOLS = 4  # at least, or each epoch would have the batches of the one before
USUAL_BATCH = 16  # for which the two columns of Sizes are told apart equally finely


Order = NDArray[np.int64]  # a permutation of the examples


def shuffled(n: int, seed: str) -> Order:
    """Of n examples."""
    return _permutation(n, _generator(seed))


def grouped(sizes: Sizes, seed: str, global_batch: int) -> Order:
    """In which neighbours are of like size, and global batches come in random order.

    Random pools of examples are sorted: in strips of like first size, each by the second one, up and down in turn. What
    is left of the last pool after whole global batches is from a random place in it, and comes last.
    """
    generator = _generator(seed)
    n = len(sizes)
    size = max(1, min(POOL, n // POOLS) // global_batch) * global_batch
    permutation = _permutation(n, generator)
    batches, rest = [], permutation[:0]
    for start in range(0, n, size):
        pool = _sorted(permutation[start : start + size], sizes)
        whole, left = divmod(len(pool), global_batch)
        at = global_batch * int(torch.randint(whole + 1, (), generator=generator))
        pool, rest = np.delete(pool, slice(at, at + left)), pool[at : at + left]
        batches += list(pool.reshape(whole, global_batch))
    return np.concatenate([*(batches[i] for i in _permutation(len(batches), generator)), rest])


def _sorted(pool: Order, sizes: Sizes) -> Order:
    spread = sizes[pool].std(0) + 1e-9
    n_strips = int(np.clip(round((len(pool) / USUAL_BATCH * spread[0] / spread[1]) ** 0.5), 1, len(pool)))
    strips = np.array_split(pool[np.argsort(sizes[pool, 0], kind="stable")], n_strips)
    ways = (slice(None), slice(None, None, -1))
    return np.concatenate([s[np.argsort(sizes[s, 1], kind="stable")][ways[i % 2]] for i, s in enumerate(strips)])


def padding_share(sizes: Sizes, order: Order, batch_size: int) -> float:
    """Of all columns of an epoch's batches, those that hold nothing."""
    filled = np.concatenate([order, order[: -len(order) % batch_size]])
    rows = sizes[filled].reshape(-1, batch_size, 2)
    return float(1 - rows.sum() / (batch_size * rows.max(axis=1).sum()))


def _permutation(n: int, generator: torch.Generator) -> Order:
    order: Order = torch.randperm(n, generator=generator).numpy()
    return order


def _generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(seed.encode(), "little") % 2**63)
