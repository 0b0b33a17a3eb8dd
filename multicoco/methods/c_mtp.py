"""C-MTP (arXiv:2607.16972): a thought is what it stands for, the mean embedding of a stretch of written reasoning.

So it is known before any pass: training takes one, in which every thought is fed what it should be, and the hidden
state from which it would be made learns to say the stretch, all of its tokens at once. At inference thoughts are
generated, as Coconut's are, of the tokens that are said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from multicoco.config.section import MethodKeys, PositiveInt
from multicoco.curriculum import ExampleTokens, Supervision, stretches
from multicoco.errors import UserError
from multicoco.methods.coconut import Coconut
from multicoco.methods.method import Extent, method_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from multicoco.config import RunConfig
    from multicoco.latent.objective import Objective
    from multicoco.latent.words import Words


class CMTPKeys(MethodKeys):
    weight: float = Field(1.0, gt=0, description="of the thoughts' loss beside the language model's")
    words: PositiveInt = Field(
        8, description="tokens that a thought stands for at most: each is said by a head of its own, D * D weights"
    )

    def problems(self, config: RunConfig) -> Iterator[str]:
        if not issubclass(method_class(config.trained_method), CMTP):
            return
        keys = CMTP(config).keys
        if keys.thoughts != "hidden" or not keys.c_thought:
            told = "coconut.c_thought is 0" if not keys.c_thought else f"coconut.thoughts is {keys.thoughts}"
            yield f"method is c_mtp but {told}: it trains hidden states to say the thoughts, set it to the default"
        for key, value in {"projection": keys.projection, "norm": keys.norm}.items():
            if value != "none":
                yield (
                    f"method is c_mtp but coconut.{key} is {value}: its thoughts are mean embeddings of words, which "
                    "have heads of their own; leave it at none"
                )
        if keys.gradient_passes is not None:
            yield (
                f"method is c_mtp but coconut.gradient_passes is {keys.gradient_passes}: it trains in one pass, leave "
                "it at null"
            )
        if keys.pad_latent_to_max:
            yield (
                "method is c_mtp but coconut.pad_latent_to_max is true: thoughts past the steps would stand for "
                "nothing, set it to false"
            )


class CMTP(Coconut):
    """Coconut's rows and stages; an example has no more thoughts than its replaced steps ask for."""

    own_section = "c_mtp"
    OwnKeys: ClassVar[type[MethodKeys]] = CMTPKeys
    needs_steps = True
    may_refuse = True

    def train_counts(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> tuple[int, int]:
        return self._bounded(*super().train_counts(tokens, stage, epoch, example_id))

    def _bounded(self, n_replaced: int, n_latents: int) -> tuple[int, int]:
        return n_replaced, min(n_latents, n_replaced * self.schedule.c_thought)

    def supervision(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> Supervision:
        """Raises: UserError: see `extent`."""
        return Supervision(self._stretches(tokens, *self.train_counts(tokens, stage, epoch, example_id)))

    def _stretches(self, tokens: ExampleTokens, n_replaced: int, n_latents: int) -> list[list[int]]:
        c_thought, most = self.schedule.c_thought, self.section_of(CMTPKeys).words
        shared = stretches(tokens.steps[:n_replaced], n_latents // c_thought, c_thought)
        longest = max(map(len, shared), default=0)
        if longest > most:
            raise UserError(
                f"a thought would stand for {longest} tokens of an example's reasoning, and c_mtp.words is {most}: "
                f"raise it to {longest} or more, or raise coconut.c_thought or coconut.max_latent_stage"
            )
        return shared

    def extent(self, tokens: ExampleTokens, stage: int) -> Extent:
        """Raises: UserError: a thought may stand for more tokens than there are heads."""
        n_steps = len(tokens.steps)
        for drawn in {stage, *(range(n_steps + 1) if self.schedule.uniform_prob else ())}:
            self._stretches(tokens, *self._bounded(*self.schedule.train_counts(drawn, n_steps)))
        return super().extent(tokens, stage)

    def passes(self, stage: int) -> int:
        return 1

    def said(self, stage: int) -> int:
        return self.schedule.max_latents(stage) * self.section_of(CMTPKeys).words

    def projection(self, model: PreTrainedModel) -> Words:
        from multicoco.latent.words import Words

        nothing = -1 if self.latent_tokens is None else self.latent_tokens.latent  # without them, nothing is said
        return Words(model, self.section_of(CMTPKeys).words, nothing, self.config.seed)

    def objective(self, model: PreTrainedModel) -> Objective:
        from multicoco.latent.words import SayingWords

        return SayingWords(self.section_of(CMTPKeys).weight)

    def counts(self, batch: dict[str, Any]) -> list[int]:
        """Thoughts that are learned."""
        supervision = batch["supervision"]
        stands_for_something = supervision["stretches"][..., 0] >= 0
        return [int(stands_for_something[supervision["counted"]].sum())]
