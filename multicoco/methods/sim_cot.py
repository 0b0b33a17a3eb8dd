"""SIM-CoT (Wei et al. 2025, arXiv:2509.20317): Coconut, and each step that is replaced must be readable from the
thoughts in its place. The decoder that reads is there in training alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from multicoco.config.section import MethodKeys, PositiveInt
from multicoco.curriculum import IGNORE_INDEX, ExampleTokens, Supervision, stretches
from multicoco.methods.coconut import Coconut
from multicoco.methods.method import Beside, method_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from multicoco.config import RunConfig
    from multicoco.latent.objective import Objective


class SimCoTKeys(MethodKeys):
    weight: float = Field(1.0, gt=0, description="of the decoder's loss beside the language model's")
    decoder: Literal["copy", "self", "adapters"] = Field(
        "copy",
        description="what reads the thoughts: a copy of the language model; itself, which takes no further memory; or "
        "itself with adapters of the decoder's own (LoRA)",
    )
    decoder_layers: PositiveInt | None = Field(
        None, description="of the language model's layers a copy has the first so many; null: all"
    )
    decoder_rank: PositiveInt | None = Field(None, description="rank of the decoder's adapters; null where it has none")
    decoder_alpha: float = Field(
        16.0, gt=0, description="the output of these is scaled by decoder_alpha / decoder_rank"
    )
    freeze_decoder: bool = Field(False, description="a copy stays as it is")
    reads: Literal["all", "last"] = Field(
        "all", description="of the c_thought thoughts of a step, the decoder reads all, or the last, before it writes"
    )

    def problems(self, config: RunConfig) -> Iterator[str]:
        if not issubclass(method_class(config.trained_method), SimCoT):
            return
        keys, named = SimCoT(config).keys, f"method is {config.trained_method}"
        if not keys.c_thought:
            yield f"{named} but coconut.c_thought is 0: there would be nothing to read, raise it"
        elif keys.thoughts not in ("hidden", "detached"):
            yield (
                f"{named} but coconut.thoughts is {keys.thoughts}: a step cannot be read from what is not of "
                "its example, set it to hidden"
            )
        elif self._teaches_itself_alone(config):
            why = "coconut.thoughts is detached" if keys.thoughts == "detached" else "coconut.gradient_passes is 0"
            yield (
                f"{named} but {why}, so that a decoder which is left behind would be all that learns from its loss: "
                "let gradients through, project the thoughts, or set sim_cot.decoder to self"
            )
        if self.freeze_decoder and self.decoder != "copy":
            yield f"sim_cot.freeze_decoder is true but sim_cot.decoder is {self.decoder}, which trains: set it to copy"
        if self.decoder_layers is not None and self.decoder != "copy":
            yield (
                f"sim_cot.decoder_layers is {self.decoder_layers} but sim_cot.decoder is {self.decoder}, which is all "
                "of it: set it to copy"
            )
        if self.decoder_alpha != type(self).model_fields["decoder_alpha"].default and self.decoder != "adapters":
            yield (
                f"sim_cot.decoder_alpha is {self.decoder_alpha:g} but sim_cot.decoder is {self.decoder}, which has no "
                "adapters: leave it out, or set sim_cot.decoder to adapters"
            )
        if self.decoder_rank is None and self.decoder == "adapters":
            yield "sim_cot.decoder is adapters but sim_cot.decoder_rank is null: set the rank"
        if self.decoder_rank is not None and self.decoder != "adapters":
            yield (
                f"sim_cot.decoder_rank is {self.decoder_rank} but sim_cot.decoder is {self.decoder}, which has none: "
                "leave it at null, or set sim_cot.decoder to adapters"
            )

    def _teaches_itself_alone(self, config: RunConfig) -> bool:
        """Whether nothing that stays has a gradient of the decoder's loss: neither what thoughts are made by, nor
        weights that the decoder shares."""
        is_apart = self.decoder == "copy" or (self.decoder == "adapters" and config.lora.rank is not None)
        method = SimCoT(config)
        return is_apart and method.gradient_passes == 0 and method.keys.projection == "none"


class SimCoT(Coconut):
    """Coconut's rows and stages; or those of another method that builds on Coconut, to whose loss it then adds."""

    own_section = "sim_cot"
    OwnKeys: ClassVar[type[MethodKeys]] = SimCoTKeys
    needs_steps = True

    def supervision(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> Supervision:
        """The last thought of each latent step writes the step; the others, and those past the steps, nothing."""
        steps = self._steps(tokens, *self.train_counts(tokens, stage, epoch, example_id))
        nothing: list[list[int]] = [[]] * (self.schedule.c_thought - 1)
        besides = super().supervision(tokens, stage, epoch, example_id) or Supervision()
        return replace(besides, stretches=[part for step in steps for part in (*nothing, step)])

    def further_rows(
        self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str
    ) -> dict[str, tuple[list[int], list[int]]]:
        """What the decoder writes of each latent step, after the thoughts that it reads."""
        read, nothing = [self._tokens.latent] * self._n_read, [IGNORE_INDEX] * self._n_read
        steps = self._steps(tokens, *self.train_counts(tokens, stage, epoch, example_id))
        return super().further_rows(tokens, stage, epoch, example_id) | {
            f"as the decoder reads latent step {place}": ([*read, *step], [*nothing, *step])
            for place, step in enumerate(steps, start=1)
            if step
        }

    def _steps(self, tokens: ExampleTokens, n_replaced: int, n_latents: int) -> list[list[int]]:
        """What each latent step stands for."""
        return stretches(tokens.steps[:n_replaced], n_latents // self.schedule.c_thought, 1)

    @property
    def _n_read(self) -> int:
        """Thoughts of a latent step that the decoder reads: its last ones."""
        return self.schedule.c_thought if self.section_of(SimCoTKeys).reads == "all" else 1

    def objective(self, model: PreTrainedModel) -> Objective:
        from multicoco.latent.step_decoder import StepDecoder, copied
        from multicoco.models.lora import adapted_twin

        keys, besides = self.section_of(SimCoTKeys), super().objective(model)
        decoder: tuple[Any, ...] = ()
        if keys.decoder == "copy":
            decoder = copied(model, keys.freeze_decoder, keys.decoder_layers)
        elif keys.decoder_rank is not None:
            decoder = (adapted_twin(model, keys.decoder_rank, keys.decoder_alpha),)
        return StepDecoder(keys.weight, self._n_read, besides, *decoder)

    def beside(self, tokens: ExampleTokens, stage: int) -> Beside:
        """The steps of the stage or, where an example may draw it, of the one that has most."""
        n_steps = len(tokens.steps)
        stages = {stage, *(range(n_steps + 1) if self.schedule.uniform_prob else ())}
        written = [self._steps(tokens, *self.schedule.train_counts(one, n_steps)) for one in stages]
        longest = max((len(step) for steps in written for step in steps), default=0)
        return Beside(max(sum(map(bool, steps)) for steps in written), self._n_read, longest)

    def counts(self, batch: dict[str, Any]) -> list[int]:
        """Tokens that the decoder writes, and what the loss that it adds to counts."""
        supervision = batch["supervision"]
        written = int((supervision["stretches"][supervision["counted"]] != IGNORE_INDEX).sum())
        return [written, *super().counts(batch)]
