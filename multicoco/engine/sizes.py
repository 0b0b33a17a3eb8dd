"""How long every example is, in every stage: measured once, each rank its share, and without decoding an image."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from multicoco.curriculum import ExampleTokens
from multicoco.data.example import Example
from multicoco.data.loader import Encoder, in_order
from multicoco.data.order import Sizes
from multicoco.data.prompt import Asked
from multicoco.engine.ranks import agree, gather, rank, world_size
from multicoco.errors import UserError
from multicoco.methods import Method


class _Length(NamedTuple):
    """Tokens of an example's parts, or why they are not known."""

    prompt: int = 0
    steps: tuple[int, ...] = ()
    answer: int = 0
    error: UserError | None = None


class _Measured(Dataset[_Length]):
    def __init__(self, examples: Sequence[Example], encoder: Encoder, asked: Asked):
        self.examples = examples
        self.encoder = encoder
        self.asked = asked

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: int) -> _Length:
        try:
            tokens = self.encoder.tokens(self.examples[place], self.asked)
        except UserError as error:  # which a worker would raise as another one
            return _Length(error=error)
        return _Length(len(tokens.prompt), tuple(map(len, tokens.steps)), len(tokens.answer))


class ExampleSizes:
    """Of examples, as a method asks for them.

    Args:
        prompts, steps, answers: tokens of each one's parts.
    """

    def __init__(self, prompts: Sequence[int], steps: Sequence[Sequence[int]], answers: Sequence[int]):
        self.prompts, self.answers = np.array(prompts, np.int32), np.array(answers, np.int32)
        self.ends = np.cumsum([len(of_example) for of_example in steps])  # of each one's steps among all
        self.steps = np.fromiter(chain.from_iterable(steps), np.int32)

    def at(self, method: Method, stage: int) -> Sizes:
        """In a stage; lined up where the thoughts begin, or the branches, if there are any."""
        found = np.zeros((len(self.prompts), 2), np.int64)
        start = 0
        for i, (prompt, end, answer) in enumerate(zip(self.prompts, self.ends, self.answers, strict=True)):
            steps = [[0] * n for n in self.steps[start:end]]
            extent = method.extent(ExampleTokens([0] * prompt, steps, [0] * answer), stage)
            context, behind = extent.context, extent.thoughts + extent.written + extent.branch
            found[i] = (context, behind) if extent.thoughts or extent.branch else (context + behind, 0)
            start = end
        return found


def measure_sizes(examples: Sequence[Example], encoder: Encoder, asked: Asked, num_workers: int = 0) -> ExampleSizes:
    """Collective.

    Raises:
        UserError: an image cannot be read, or a prompt not be made.
    """
    own = _Measured(examples[rank() :: world_size()], encoder, asked)
    with torch.random.fork_rng(devices=[]):  # loaders draw from it, and what follows must be as without
        measured = list(in_order(own, num_workers))
    agree(lambda: _refuse(measured))
    shares = gather([length[:3] for length in measured])
    lengths = [shares[place % len(shares)][place // len(shares)] for place in range(len(examples))]
    return ExampleSizes(*zip(*lengths, strict=True))


def _refuse(measured: Sequence[_Length]) -> None:
    for length in measured:
        if length.error is not None:
            raise length.error
