"""C-MTP (arXiv:2607.16972): a thought is what it stands for, the mean embedding of a stretch of written reasoning.

So it is known before any pass: training takes one, in which every thought is fed what it should be, and the hidden
state from which it would be made learns to be it. At inference thoughts are generated, as Coconut's are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from multicoco.config.section import MethodKeys
from multicoco.curriculum import ExampleTokens, Supervision, stretches
from multicoco.methods.coconut import Coconut
from multicoco.methods.method import method_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from multicoco.config import RunConfig
    from multicoco.latent.objective import Objective


class CMTPKeys(MethodKeys):
    weight: float = Field(1.0, gt=0, description="of the thoughts' loss beside the language model's")

    def problems(self, config: RunConfig) -> Iterator[str]:
        if not issubclass(method_class(config.trained_method), CMTP):
            return
        keys = CMTP(config).keys
        if keys.thoughts != "hidden" or not keys.c_thought:
            told = "coconut.c_thought is 0" if not keys.c_thought else f"coconut.thoughts is {keys.thoughts}"
            yield f"method is c_mtp but {told}: it trains hidden states to be the thoughts, set it to the default"
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

    def train_counts(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> tuple[int, int]:
        n_replaced, n_latents = super().train_counts(tokens, stage, epoch, example_id)
        return n_replaced, min(n_latents, n_replaced * self.schedule.c_thought)

    def supervision(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> Supervision:
        n_replaced, n_latents = self.train_counts(tokens, stage, epoch, example_id)
        c_thought = self.schedule.c_thought
        return Supervision(stretches(tokens.steps[:n_replaced], n_latents // c_thought, c_thought))

    def passes(self, stage: int) -> int:
        return 1

    def objective(self, model: PreTrainedModel) -> Objective:
        from multicoco.latent.supervised import MeanEmbeddings

        own: Any = self.config
        return MeanEmbeddings(own.c_mtp.weight)

    def counts(self, batch: dict[str, Any]) -> list[int]:
        """Thoughts that are learned."""
        supervision = batch["supervision"]
        stands_for_something = supervision["stretches"][..., 0] >= 0
        return [int(stands_for_something[supervision["counted"]].sum())]
