"""Coconut (Hao et al. 2024, arXiv:2412.06769): stage by stage, written steps give way to thoughts, the model's own last
hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from multicoco.config.section import MethodKeys, NonNegativeInt, OptionalStr, PositiveInt
from multicoco.curriculum import ExampleTokens, LatentTokens, StageSchedule, layout
from multicoco.methods.method import Extent, Method, method_class

if TYPE_CHECKING:
    from multicoco.config import RunConfig


class CoconutKeys(MethodKeys):
    enabled: bool = Field(False, description="reason with latent tokens")
    c_thought: PositiveInt = Field(1, description="latent tokens per replaced step")
    epochs_per_stage: PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        1, description="epochs of a stage; a list gives each stage its own from the first on, the last one repeats"
    )
    max_latent_stage: PositiveInt = Field(1, description="last stage that adds latent tokens")
    pad_latent_to_max: bool = Field(False, description="give examples with fewer steps max_latent_stage latents too")
    uniform_prob: float = Field(0.0, ge=0, le=1, description="probability that an example draws its stage uniformly")
    first_stage: NonNegativeInt | None = Field(
        None, description="stage of the first epoch; null: 1 with load_model_path (a CoT checkpoint), otherwise 0"
    )
    stage_lr: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = Field(
        None, description="peak learning rate of each stage from the first on, the last one repeats; null: lr"
    )
    latent_init_token: OptionalStr = Field(
        None, description="token whose embedding the latent tokens start from; null: the tokenizer's eos"
    )

    def problems(self, config: RunConfig) -> Iterator[str]:
        trains, evaluated = config.mode != "eval_only", config.eval_config
        method = method_class(config.trained_method)
        is_own = method.section == Coconut.section
        named = f"method is {config.method}" if config.method else f"mode is {config.mode}"
        most_latents = self.max_latent_stage * self.c_thought
        if is_own and not self.enabled and (trains or config.method):
            yield f"{named} but coconut.enabled is false: set it to true"
        if not is_own and self.enabled and trains:
            yield f"{named} but coconut.enabled is true: set it to false, or mode to coconut_train"
        if evaluated.coconut and not self.enabled:
            yield "eval_config.coconut is true but coconut.enabled is false: set both to the same"
        if self.enabled and (evaluated.eval_latent_tokens or 0) > most_latents:
            yield (
                f"eval_config.eval_latent_tokens is {evaluated.eval_latent_tokens} but coconut.max_latent_stage * "
                f"coconut.c_thought is {most_latents}, the most the model is trained with: lower it"
            )
        if not is_own and self.uniform_prob > 0 and trains:
            yield f"coconut.uniform_prob is {self.uniform_prob} but {named}, without stages: set it to 0"
        if self.stage_lr is not None and not config.reset_optimizer:
            yield "coconut.stage_lr is set but reset_optimizer is false: without a restart there is one learning rate"
        if is_own and self.enabled and trains:
            schedule = method(config).schedule
            last = schedule.stage(config.num_epochs - 1)
            if not schedule.max_latents(last):
                yield (
                    f"num_epochs is {config.num_epochs} and coconut.first_stage {schedule.first_stage}: in stage "
                    f"{last}, its last, there are no thoughts yet; raise num_epochs, or set coconut.first_stage to 1"
                )


class Coconut(Method):
    """Question, latent block, the steps still written, answer."""

    section: ClassVar[str] = "coconut"
    Keys = CoconutKeys
    has_thoughts = True

    def _schedule(self) -> StageSchedule:
        keys = self.keys
        default_first = 1 if self.config.load_model_path else 0
        return StageSchedule(
            c_thought=keys.c_thought,
            max_latent_stage=keys.max_latent_stage,
            epochs_per_stage=keys.epochs_per_stage,
            pad_latent_to_max=keys.pad_latent_to_max,
            uniform_prob=keys.uniform_prob,
            first_stage=default_first if keys.first_stage is None else keys.first_stage,
            seed=self.config.seed,
        )

    @property
    def keys(self) -> CoconutKeys:
        section: Any = getattr(self.config, self.section)  # fields of methods are not in the static type
        assert isinstance(section, CoconutKeys)
        return section

    @property
    def _tokens(self) -> LatentTokens:
        assert self.latent_tokens is not None
        return self.latent_tokens

    @property
    def latent_init_token(self) -> str | None:
        return self.keys.latent_init_token

    def learning_rate(self, stage: int) -> float:
        rates = self.keys.stage_lr or [self.config.lr]
        return rates[min(stage - self.schedule.first_stage, len(rates) - 1)]

    def train_row(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> tuple[list[int], list[int]]:
        n_steps = len(tokens.steps)
        drawn = self.schedule.example_stage(stage, epoch, example_id, n_steps)
        n_replaced, n_latents = self.schedule.train_counts(drawn, n_steps)
        return layout(tokens, n_replaced, self._tokens.block(n_latents))

    def prompt_row(self, tokens: ExampleTokens, stage: int) -> list[int]:
        fixed = self.config.eval_config.eval_latent_tokens
        n_latents = self.schedule.eval_latents(stage, len(tokens.steps)) if fixed is None else fixed
        return [*tokens.prompt, *self._tokens.block(n_latents)]

    def passes(self, stage: int) -> int:
        return self.schedule.max_latents(stage) + 1

    def prompt_passes(self, stage: int) -> int:
        fixed = self.config.eval_config.eval_latent_tokens
        return self.passes(stage) if fixed is None else fixed + 1

    def extent(self, tokens: ExampleTokens, stage: int) -> Extent:
        # an example that draws its stage may write all of its steps
        replaced = 0 if self.schedule.uniform_prob else self.schedule.train_counts(stage, len(tokens.steps))[0]
        written = sum(map(len, tokens.steps[replaced:])) + len(tokens.answer)
        return Extent(len(tokens.prompt) + 1, self.schedule.max_latents(stage), written + 1)
