"""How long every example is, in every stage: measured once, each rank its share, and without decoding an image."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from multicoco.curriculum import ExampleTokens
from multicoco.data.example import Example
from multicoco.data.kept import picked
from multicoco.data.loader import Encoder, in_order
from multicoco.data.order import Sizes
from multicoco.data.prompt import Asked
from multicoco.engine.ranks import agree, gather, in_turn, own_places, rank
from multicoco.engine.remembered import recall, remember
from multicoco.methods import Method

Lengths = NDArray[np.int32]


class _Measured(Dataset[list[int]]):
    """Tokens of each example's prompt, steps and answer."""

    def __init__(self, examples: Sequence[Example], encoder: Encoder, asked: Asked):
        self.examples = examples
        self.encoder = encoder
        self.asked = asked

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: int) -> list[int]:
        return lengths_of(self.encoder.tokens(self.examples[place], self.asked))


def lengths_of(tokens: ExampleTokens) -> list[int]:
    """Of its prompt, its steps, its answer."""
    return [len(tokens.prompt), *map(len, tokens.steps), len(tokens.answer)]


class ExampleSizes:
    """Of examples, as a method asks for them; four bytes a part of each, whatever their number.

    Args:
        n_parts: (n,) of each one's prompt, steps and answer.
        lengths: tokens of all parts, of one example after the other.
    """

    def __init__(self, n_parts: Lengths, lengths: Lengths):
        self.n_parts, self.lengths = n_parts, lengths
        self._last: tuple[int, Sizes] | None = None  # stage and sizes: epochs of a stage follow each other

    @classmethod
    def of(cls, examples: Iterable[Sequence[int]]) -> Self:
        """By `lengths_of` each."""
        n_parts, lengths = array("i"), array("i")
        for parts in examples:
            n_parts.append(len(parts))
            lengths.extend(parts)
        return cls(np.array(n_parts, np.int32), np.array(lengths, np.int32))

    @classmethod
    def dealt(cls, shares: Sequence["ExampleSizes"]) -> Self:
        """All examples, of which each rank has every so manyth."""
        n_parts = in_turn([share.n_parts for share in shares])
        starts = np.cumsum(n_parts) - n_parts
        lengths = np.empty(n_parts.sum(), np.int32)
        for first, share in enumerate(shares):
            own_starts = np.cumsum(share.n_parts) - share.n_parts
            shift = np.repeat(starts[first :: len(shares)] - own_starts, share.n_parts)
            lengths[np.arange(len(share.lengths)) + shift] = share.lengths
        return cls(n_parts, lengths)

    @classmethod
    def recall(cls, path: Path | None, n: int) -> Self | None:
        """What is remembered of n examples; None if there is no such file."""
        numbers = recall(path, np.int32)
        if numbers is None:
            return None
        n_parts, lengths = numbers[:n], numbers[n:]
        return cls(n_parts, lengths) if len(n_parts) == n and n_parts.sum() == len(lengths) else None

    def remember(self, path: Path | None) -> None:
        remember(path, np.concatenate([self.n_parts, self.lengths]))

    def __iter__(self) -> Iterator[ExampleTokens]:
        """Examples of such lengths."""
        end = 0
        for n in self.n_parts.tolist():
            start, end = end, end + n
            prompt, *steps, answer = ([0] * length for length in self.lengths[start:end].tolist())
            yield ExampleTokens(prompt, steps, answer)

    def at(self, method: Method, stage: int) -> Sizes:
        """In a stage; lined up where the thoughts begin, or the branches, if there are any."""
        if self._last is None or self._last[0] != stage:
            found = np.zeros((len(self.n_parts), 2), np.int64)
            for i, tokens in enumerate(self):
                extent = method.extent(tokens, stage)
                context, behind = extent.context, extent.thoughts + extent.written + extent.branch
                found[i] = (context, behind) if extent.thoughts or extent.branch else (context + behind, 0)
            self._last = stage, found
        return self._last[1]


def measure_sizes(
    examples: Sequence[Example], encoder: Encoder, asked: Asked, num_workers: int = 0, remembered: Path | None = None
) -> ExampleSizes:
    """Collective.

    Args:
        remembered: a file for the lengths of these examples, so that they are not measured again; its folder is there.

    Raises:
        UserError: an image cannot be read, or a prompt not be made.
    """
    known = agree(lambda: ExampleSizes.recall(remembered, len(examples)), only_rank_0=True)
    if known is not None:
        return known
    own = _Measured(picked(examples, own_places(len(examples))), encoder, asked)
    with torch.random.fork_rng(devices=[]):  # loaders draw from it, and what follows must be as without
        share = agree(lambda: ExampleSizes.of(in_order(own, num_workers)))
    sizes = ExampleSizes.dealt(gather(share))
    if rank() == 0:
        sizes.remember(remembered)
    return sizes
