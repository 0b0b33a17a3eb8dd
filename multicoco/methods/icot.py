"""Implicit chain of thought by stepwise internalisation (Deng, Choi and Shieber 2024, arXiv:2405.14838): the written
reasoning goes token by token, from its beginning, while training goes on. No latent tokens.

The schedule is that of the authors' code (github.com/da03/Internalize_CoT_Step_by_Step, src/train.py).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from multicoco.config.section import MethodKeys, PositiveInt
from multicoco.curriculum import ExampleTokens, layout
from multicoco.methods.method import Extent, Method, Part, method_class

if TYPE_CHECKING:
    from multicoco.config import RunConfig

_MOST_EXTRA = 99  # tokens; the authors' distribution ends there


class ICoTKeys(MethodKeys):
    remove_per_epoch: float = Field(8.0, gt=0, description="tokens of the written reasoning that go in an epoch")
    remove_all_beyond: PositiveInt | None = Field(
        None, description="once so many are to go, all do; null: examples keep what is longer than what has gone"
    )
    smoothing: float | None = Field(
        4.0,
        gt=0,
        description="lambda: of an example k more go with a probability of exp(-lambda k) or less; null: none",
    )

    def problems(self, config: RunConfig) -> Iterator[str]:
        if config.mode == "eval_only" or method_class(config.trained_method) is not ICoT:
            return
        removed = config.num_epochs * self.remove_per_epoch
        if self.remove_all_beyond is not None and removed <= self.remove_all_beyond:
            yield (
                f"num_epochs is {config.num_epochs} and icot.remove_per_epoch {self.remove_per_epoch:g}, but "
                f"icot.remove_all_beyond {self.remove_all_beyond}: training would end before all is removed, raise one "
                "of the first two or lower the last"
            )


class ICoT(Method):
    """Question, what is left of the written reasoning, answer. A stage is the number of tokens that are to go."""

    section: ClassVar[str] = "icot"
    Keys = ICoTKeys
    restarts_schedule: ClassVar[bool] = False  # removals come every few steps: a warm-up each would be all there is

    @property
    def keys(self) -> ICoTKeys:
        return self.section_of(ICoTKeys)

    def parts(self, epoch: int, steps_per_epoch: int) -> Sequence[Part]:
        """One more token goes every round(steps_per_epoch / remove_per_epoch) steps, and at least every step."""
        steps_per_token = max(1, round(steps_per_epoch / self.keys.remove_per_epoch))
        first, end = epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch
        last = self.keys.remove_all_beyond or end
        stages = range(min(first // steps_per_token, last), min((end - 1) // steps_per_token, last) + 1)
        return [
            Part(
                stage,
                max(stage * steps_per_token - first, 0),
                (stage + 1) * steps_per_token - first if stage != stages[-1] else steps_per_epoch,
            )
            for stage in stages
        ]

    def train_row(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> tuple[list[int], list[int]]:
        reasoning = [*chain.from_iterable(tokens.steps)]
        removed = self._removed(stage, len(reasoning)) + self._extra(epoch, example_id)
        return layout(replace(tokens, steps=[reasoning[removed:]]), n_replaced=0, latent_block=())

    def extent(self, tokens: ExampleTokens, stage: int) -> Extent:
        n_written = sum(map(len, tokens.steps))
        return Extent(len(tokens.prompt), 0, n_written - self._removed(stage, n_written) + len(tokens.answer))

    def _removed(self, stage: int, n_written: int) -> int:
        """Of an example's tokens, without what it loses in addition."""
        return n_written if stage >= (self.keys.remove_all_beyond or math.inf) else min(stage, n_written)

    def _extra(self, epoch: int, example_id: str) -> int:
        """Drawn from P(k) = (1 - exp(-lambda)) exp(-lambda k), the last k having what is left of it."""
        if self.keys.smoothing is None:
            return 0
        uniform = 1.0 - random.Random(f"{self.config.seed}/{epoch}/{example_id}/removal").random()  # in (0, 1]
        return min(int(-math.log(uniform) / self.keys.smoothing), _MOST_EXTRA)
