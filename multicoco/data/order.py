"""In which order an epoch sees its examples: a function of the seed, the examples and the global batch alone, so that
it is the same on any number of ranks."""

from collections.abc import Collection, Sequence
from hashlib import sha256
from typing import overload

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


class LaneOrder(Sequence[int]):
    """Of records that lie in pieces, each of which is read as a whole; computed where it is asked for.

    The pieces in random order are a row of records that is cut into lanes of equal length. Every global batch takes as
    many rows of each lane, in their order, but that a lane's records are shuffled in blocks. So each rank reads the
    lanes that its rows are of, from their beginnings to their ends.

    Args:
        pieces: records in each.
        lanes: at most; of the numbers that divide a global batch the largest one is taken.
        buffer: records in the blocks of all lanes together.

    Attributes:
        rows: of a global batch that are of one lane.
    """

    def __init__(self, pieces: NDArray[np.int64], seed: str, global_batch: int, lanes: int, buffer: int):
        self.seed, self.global_batch, self.n = seed, global_batch, int(pieces.sum())
        n_lanes = next(n for n in range(min(lanes, global_batch), 0, -1) if global_batch % n == 0)
        self.rows, self.block = global_batch // n_lanes, max(1, buffer // n_lanes)
        order = _permutation(len(pieces), _generator(seed))
        self.firsts = (np.cumsum(pieces) - pieces)[order]  # of each piece's records, in the order of the pieces
        self.ends = np.cumsum(pieces[order])
        whole, left = divmod(self.n, global_batch)
        self.lengths = whole * self.rows + np.clip(left - np.arange(n_lanes) * self.rows, 0, self.rows)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self._shuffled: dict[int, tuple[int, Order]] = {}  # the block that each lane is in

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, slot: int) -> int: ...

    @overload
    def __getitem__(self, slot: slice) -> list[int]: ...

    def __getitem__(self, slot: int | slice) -> int | list[int]:
        """The record in a slot, of which an epoch's global batches have one each row."""
        if isinstance(slot, slice):
            return [self[i] for i in range(self.n)[slot]]
        step, row = divmod(range(self.n)[slot], self.global_batch)
        lane, row = divmod(row, self.rows)
        block, within = divmod(step * self.rows + row, self.block)
        position = int(self.starts[lane]) + block * self.block + int(self._block(lane, block)[within])
        piece = int(np.searchsorted(self.ends, position, side="right"))
        start = int(self.ends[piece - 1]) if piece else 0
        return int(self.firsts[piece]) + position - start

    def pieces_at_once(self, rows: Collection[int]) -> int:
        """That are read at a time by whoever has these rows of each global batch."""
        usual = max(1, self.n // len(self.ends))
        return len({row // self.rows for row in rows}) * (2 + self.block // usual)

    def _block(self, lane: int, block: int) -> Order:
        if self._shuffled.get(lane, (-1, None))[0] != block:
            size = min(self.block, int(self.lengths[lane]) - block * self.block)
            self._shuffled[lane] = block, _permutation(size, _generator(f"{self.seed}/{lane}/{block}"))
        return self._shuffled[lane][1]


def padding_share(sizes: Sizes, order: Order, batch_size: int) -> float:
    """Of all columns of an epoch's batches, those that hold nothing."""
    filled = np.concatenate([order, order[: -len(order) % batch_size]])
    rows = sizes[filled].reshape(-1, batch_size, 2)
    return float(1 - rows.sum() / (batch_size * rows.max(axis=1).sum()))


def _permutation(n: int, generator: torch.Generator) -> Order:
    order: Order = torch.randperm(n, generator=generator).numpy()
    return order


def _generator(seed: str) -> torch.Generator:
    """Of all of a text: one of eight bytes at most is taken as it is."""
    given = seed.encode()
    number = int.from_bytes(given if len(given) <= 8 else sha256(given).digest()[:8], "little")
    return torch.Generator().manual_seed(number % 2**63)
