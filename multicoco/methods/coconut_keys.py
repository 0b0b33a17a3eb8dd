"""The keys of the section `coconut`, which all methods that build on Coconut share, and what of them does not go
together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from multicoco.config.section import MethodKeys, NonNegativeInt, OptionalStr, PositiveInt
from multicoco.curriculum import StageSchedule
from multicoco.methods.method import evaluated_methods, method_class

if TYPE_CHECKING:
    from multicoco.config import RunConfig

SECTION = "coconut"
_GIVES_STAGES = frozenset({"mode", "method", "load_model_path", "coconut.first_stage", "coconut.max_latent_stage"})
# keys that say how thoughts are made or when stages end; those of the curriculum's size stand in configs of CoT too
_OF_TRAINING = (
    *("thoughts", "projection", "norm", "gradient_passes", "jacobi_iterations"),
    *("advance_when_accuracy", "collapse_below", "stage_lr"),
)


class CoconutKeys(MethodKeys):
    enabled: bool = Field(False, description="reason with latent tokens")
    c_thought: NonNegativeInt = Field(
        1, description="latent tokens per replaced step; 0: steps go and nothing takes their place, as in `no_thoughts`"
    )
    thoughts: Literal["hidden", "detached", "pause", "noise", "borrowed"] = Field(
        "hidden",
        description="what latent positions are fed: hidden states; these without gradient; one learned embedding; "
        "Gaussian vectors; another example's hidden states ([controls](controls.md))",
    )
    projection: Literal["none", "linear", "mlp"] = Field(
        "none",
        description="what a thought goes through before it is fed, trained with the model: nothing; a linear layer and "
        "a LayerNorm; two layers and a LayerNorm ([methods](methods.md#projection-and-norm-of-thoughts))",
    )
    norm: Literal["none", "embedding"] = Field(
        "none",
        description="embedding: a thought is fed with the mean norm of the embeddings that training started from",
    )
    gradient_passes: NonNegativeInt | None = Field(
        None,
        description="backpropagate through the last so many passes of an example: earlier thoughts are constants, 0 is "
        "`detached`; null: through all",
    )
    jacobi_iterations: PositiveInt | None = Field(
        None,
        description="make all thoughts together, so many times: that many passes and one more, whatever the number of "
        "thoughts; null: one after the other ([methods](methods.md#parallel-thoughts))",
    )
    epochs_per_stage: PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        1, description="epochs of a stage; a list gives each stage its own from the first on, the last one repeats"
    )
    advance_when_accuracy: float | None = Field(
        None,
        gt=0,
        le=1,
        description="a stage ends after an epoch whose evaluation is that accurate, epochs_per_stage being the most; "
        "null: stages have all of their epochs",
    )
    collapse_below: float | None = Field(
        None,
        gt=0,
        le=1,
        description="training stops after an epoch whose evaluation has less than this share of the best accuracy of "
        "its stage or, at its stage's end, of the stage before; null: never",
    )
    max_latent_stage: PositiveInt = Field(1, description="last stage that adds latent tokens")
    pad_latent_to_max: bool = Field(False, description="give examples with fewer steps max_latent_stage latents too")
    uniform_prob: float = Field(0.0, ge=0, le=1, description="probability that an example draws its stage uniformly")
    first_stage: NonNegativeInt | None = Field(
        None,
        description="stage of the first epoch; null: 1 with load_model_path (a CoT checkpoint), otherwise 0; "
        "max_latent_stage + 1: no curriculum",
    )
    stage_lr: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = Field(
        None,
        description="peak learning rate of each stage that there is, from the first on, the last one repeats; null: lr",
    )
    latent_init_token: OptionalStr = Field(
        None, description="token whose embedding the latent tokens start from; null: the tokenizer's eos"
    )

    def problems(self, config: RunConfig) -> Iterator[str]:
        trains, evaluated = config.mode != "eval_only", config.eval_config
        method = method_class(config.trained_method)
        is_own = method.section == SECTION
        named = f"method is {config.method}" if config.method else f"mode is {config.mode}"
        thinks = any(method_class(name).has_thoughts for name in evaluated_methods(config))
        if evaluated.think_then_write is not None and not thinks:
            yield (
                f"eval_config.think_then_write is {evaluated.think_then_write} but no method is evaluated that thinks: "
                "leave it at null, or add one, such as eval_config.coconut"
            )
        if is_own and not self.enabled and (trains or config.method):
            yield f"{named} but coconut.enabled is false: set it to true"
        if not is_own and self.enabled and trains:
            yield f"{named} but coconut.enabled is true: set it to false, or mode to coconut_train"
        for name in () if self.enabled else evaluated.named_methods:
            if method_class(name).section == SECTION:
                yield f"{evaluated.asks_by(name)} but coconut.enabled is false: set both to the same"
        if not is_own and self.uniform_prob > 0 and trains:
            yield f"coconut.uniform_prob is {self.uniform_prob} but {named}, without stages: set it to 0"
        if self.stage_lr is not None and not config.reset_optimizer:
            yield "coconut.stage_lr is set but reset_optimizer is false: without a restart there is one learning rate"
        if self.stage_lr is not None and isinstance(config.lr, dict):
            yield "coconut.stage_lr is set but lr has a rate for each part: leave one of the two out"
        if is_own and self.thoughts == "borrowed" and config.streaming and trains:
            yield (
                "coconut.thoughts is borrowed but streaming is true: a thought may be borrowed from any record, and a "
                "stream has but a few at a time; set streaming to false"
            )
        if is_own and self.thoughts != "hidden" and not method(config).schedule.c_thought:
            why = f"{named}, which has none" if self.c_thought else "coconut.c_thought is 0"
            yield f"coconut.thoughts is {self.thoughts} but {why}: leave it at hidden"
        if is_own and trains:
            yield from self._steering_problems(config, method(config).schedule)
        if is_own:
            yield from self._thought_problems(method(config).schedule)
        if self.first_stage is not None and self.first_stage > self.max_latent_stage + 1:
            yield (
                f"coconut.first_stage is {self.first_stage} but coconut.max_latent_stage {self.max_latent_stage}: the "
                f"last stage is {self.max_latent_stage + 1}, in which no step is written"
            )
        if is_own and self.enabled and trains:
            schedule = method(config).schedule
            last = max(schedule.reachable(config.num_epochs))
            if last == 0 and not schedule.uniform_prob:
                yield (
                    f"num_epochs is {config.num_epochs} and coconut.first_stage {schedule.first_stage}: in stage "
                    f"{last}, its last, there are no thoughts yet; raise num_epochs, or set coconut.first_stage to 1"
                )

    def unread(self, config: RunConfig) -> Iterator[tuple[str, frozenset[str], str]]:
        method = method_class(config.trained_method)
        if config.mode == "eval_only":
            return
        if method.section != SECTION:
            for key in _OF_TRAINING:
                if (value := getattr(self, key)) != type(self).model_fields[key].default:
                    yield (
                        f"coconut.{key}",
                        frozenset({"mode", "method"}),
                        f"coconut.{key} is {value} but the method is {config.trained_method}, which does not read it: "
                        "leave it out, or train coconut",
                    )
            return
        schedule = method(config).schedule
        for key, entries in {"epochs_per_stage": self.epochs_per_stage, "stage_lr": self.stage_lr}.items():
            if isinstance(entries, list) and len(entries) > schedule.n_stages:
                stages = f"the stages {schedule.first_stage} to {schedule.max_latent_stage + 1}"
                if schedule.n_stages == 1:
                    stages = f"one stage, {schedule.first_stage}"
                yield (
                    f"coconut.{key}",
                    _GIVES_STAGES,
                    f"coconut.{key} has {len(entries)} entries, one a stage, but {config.trained_method} has here "
                    f"{stages}: leave out the last {len(entries) - schedule.n_stages}",
                )

    def _steering_problems(self, config: RunConfig, schedule: StageSchedule) -> Iterator[str]:
        for key in ("advance_when_accuracy", "collapse_below"):
            if (value := getattr(self, key)) is None:
                continue
            told = f"coconut.{key} is {value} but"
            if not config.val_path:
                yield f"{told} val_path is null: leave it at null, or name the records to evaluate"
            if config.trained_method not in evaluated_methods(config):
                yield f"{told} {config.trained_method} is trained and not evaluated: add it to eval_config"
            if 1 < config.eval_every_epochs >= config.num_epochs:
                yield (
                    f"{told} the one evaluation is after the last of {config.num_epochs} epochs, eval_every_epochs "
                    f"being {config.eval_every_epochs}: leave it at null, or evaluate earlier"
                )
        if self.advance_when_accuracy is not None:
            told = f"coconut.advance_when_accuracy is {self.advance_when_accuracy} but"
            if schedule.n_stages == 1:
                yield f"{told} {config.trained_method} has one stage, {schedule.first_stage}: leave it at null"
            elif not _may_end_early(schedule, config):
                yield (
                    f"{told} no evaluation finds a stage that is not over anyway, eval_every_epochs being "
                    f"{config.eval_every_epochs}: raise coconut.epochs_per_stage, the most that a stage gets"
                )
            elif otherwise := _asked_otherwise(schedule, config):
                yield (
                    f"{told} {otherwise}, and not what the stage has: no evaluation would tell whether it is learned; "
                    "leave one of the two at null, and ask so in a run of mode eval_only"
                )

    def _thought_problems(self, schedule: StageSchedule) -> Iterator[str]:
        most = schedule.max_latent_stage * schedule.c_thought
        if not most:
            for key in ("projection", "norm", "gradient_passes", "jacobi_iterations"):
                value, default = getattr(self, key), type(self).model_fields[key].default
                if value != default:
                    yield f"coconut.{key} is {value} but there are no thoughts: leave it at {default or 'null'}"
            return
        for key, value in {"projection": self.projection, "norm": self.norm}.items():
            if value != "none" and self.thoughts in ("pause", "noise"):
                yield (
                    f"coconut.{key} is {value} but coconut.thoughts is {self.thoughts}, no hidden state: leave it at "
                    "none"
                )
        n = self.gradient_passes
        if n is not None and self.thoughts in ("detached", "pause", "noise"):
            yield (
                f"coconut.gradient_passes is {n} but coconut.thoughts is {self.thoughts}, through which no gradient "
                "goes to an earlier pass: leave it at null"
            )
        elif n is not None and n > most:
            yield f"coconut.gradient_passes is {n} but there are at most {most} thoughts: lower it, or null for all"
        iterations = self.jacobi_iterations
        if iterations is not None and self.thoughts in ("pause", "noise"):
            yield (
                f"coconut.jacobi_iterations is {iterations} but coconut.thoughts is {self.thoughts}, which waits for "
                "no pass: leave it at null"
            )
        elif iterations is not None and iterations > most:
            yield (
                f"coconut.jacobi_iterations is {iterations} but there are at most {most} thoughts, which are what they "
                f"are in sequence after {most}: lower it, or null for one after the other"
            )


def _asked_otherwise(schedule: StageSchedule, config: RunConfig) -> str:
    """What has questions asked with other thoughts than those of the stage; "" if nothing has."""
    evaluated, stages = config.eval_config, schedule.reachable(config.num_epochs)
    if evaluated.think_then_write is not None:
        return f"eval_config.think_then_write is {evaluated.think_then_write}"
    asked = evaluated.eval_latent_tokens
    is_theirs = asked is None or {schedule.eval_latents(stage, n_steps=0) for stage in stages} == {asked}
    return "" if is_theirs else f"eval_config.eval_latent_tokens is {asked}"


def _may_end_early(schedule: StageSchedule, config: RunConfig) -> bool:
    """Whether an evaluation comes in a stage that has epochs left and another one behind it."""
    evaluated = {*range(config.eval_every_epochs, config.num_epochs, config.eval_every_epochs), config.num_epochs}
    stages = ((schedule.stage(epochs - 1), schedule.stage(epochs)) for epochs in evaluated)
    return any(stage == after <= schedule.max_latent_stage for stage, after in stages)
