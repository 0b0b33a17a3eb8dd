"""SIM-CoT (Wei et al. 2025, arXiv:2509.20317): Coconut, and each step that is replaced must be readable from the
thoughts in its place. The decoder that reads is there in training alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from multicoco.config.section import MethodKeys, PositiveInt
from multicoco.curriculum import IGNORE_INDEX, ExampleTokens, Supervision, stretches
from multicoco.methods.coconut import Coconut
from multicoco.methods.method import ModelCopy, method_class

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
        keys = SimCoT(config).keys
        if not keys.c_thought:
            yield "method is sim_cot but coconut.c_thought is 0: there would be nothing to read, raise it"
        elif keys.thoughts not in ("hidden", "detached"):
            yield (
                f"method is sim_cot but coconut.thoughts is {keys.thoughts}: a step cannot be read from what is not of "
                "its example, set it to hidden"
            )
        if self.freeze_decoder and self.decoder != "copy":
            yield f"sim_cot.freeze_decoder is true but sim_cot.decoder is {self.decoder}, which trains: set it to copy"
        if self.decoder_layers is not None and self.decoder != "copy":
            yield (
                f"sim_cot.decoder_layers is {self.decoder_layers} but sim_cot.decoder is {self.decoder}, which is all "
                "of it: set it to copy"
            )
        if self.decoder_rank is None and self.decoder == "adapters":
            yield "sim_cot.decoder is adapters but sim_cot.decoder_rank is null: set the rank"
        if self.decoder_rank is not None and self.decoder != "adapters":
            yield (
                f"sim_cot.decoder_rank is {self.decoder_rank} but sim_cot.decoder is {self.decoder}, which has none: "
                "leave it at null, or set sim_cot.decoder to adapters"
            )
        if config.lora.rank and self.decoder == "copy" and config.mode != "eval_only":
            yield (
                f"lora.rank is {config.lora.rank} but sim_cot.decoder is copy: adapters are of one model, set it to "
                "adapters or self, or lora.rank to null"
            )


class SimCoT(Coconut):
    """Coconut's rows and stages."""

    own_section = "sim_cot"
    OwnKeys: ClassVar[type[MethodKeys]] = SimCoTKeys
    needs_steps = True

    @property
    def own_keys(self) -> SimCoTKeys:
        config: Any = self.config  # sections of methods are not in its static type
        assert isinstance(config.sim_cot, SimCoTKeys)
        return config.sim_cot

    def supervision(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> Supervision:
        """The last thought of each latent step writes the step; the others, and those past the steps, nothing."""
        n_replaced, n_latents = self.train_counts(tokens, stage, epoch, example_id)
        c_thought = self.schedule.c_thought
        steps = stretches(tokens.steps[:n_replaced], n_latents // c_thought, 1)
        nothing: list[list[int]] = [[]] * (c_thought - 1)
        return Supervision([part for step in steps for part in (*nothing, step)])

    def further_rows(
        self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str
    ) -> dict[str, tuple[list[int], list[int]]]:
        """What the decoder writes of each latent step, after the thoughts that it reads."""
        c_thought = self.schedule.c_thought
        read, nothing = [self._tokens.latent] * self._n_read, [IGNORE_INDEX] * self._n_read
        steps = self.supervision(tokens, stage, epoch, example_id).stretches[c_thought - 1 :: c_thought]
        return {
            f"as the decoder reads latent step {place}": ([*read, *step], [*nothing, *step])
            for place, step in enumerate(steps, start=1)
            if step
        }

    @property
    def _n_read(self) -> int:
        """Thoughts of a latent step that the decoder reads: its last ones."""
        return self.schedule.c_thought if self.own_keys.reads == "all" else 1

    def objective(self, model: PreTrainedModel) -> Objective:
        from multicoco.latent.step_decoder import StepDecoder, copied
        from multicoco.models.lora import adapted_twin

        keys, n_read = self.own_keys, self._n_read
        if keys.decoder == "copy":
            return StepDecoder(keys.weight, n_read, *copied(model, keys.freeze_decoder, keys.decoder_layers))
        if keys.decoder_rank is not None:
            return StepDecoder(keys.weight, n_read, adapted_twin(model, keys.decoder_rank, keys.decoder_alpha))
        return StepDecoder(keys.weight, n_read)

    @property
    def model_copy(self) -> ModelCopy | None:
        keys = self.own_keys
        if keys.decoder == "self":
            return None
        return ModelCopy(not keys.freeze_decoder, keys.decoder_layers, keys.decoder_rank)

    def counts(self, batch: dict[str, Any]) -> list[int]:
        """Tokens that the decoder writes."""
        supervision = batch["supervision"]
        return [int((supervision["stretches"][supervision["counted"]] != IGNORE_INDEX).sum())]
