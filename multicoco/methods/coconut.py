"""Coconut (Hao et al. 2024, arXiv:2412.06769): stage by stage, written steps give way to thoughts, the model's own last
hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from multicoco.config.rates import Rates
from multicoco.curriculum import ExampleTokens, LatentTokens, StageSchedule, layout
from multicoco.latent.schedule import SEQUENTIAL, Jacobi, OnePass, PassSchedule
from multicoco.methods.coconut_keys import SECTION, CoconutKeys
from multicoco.methods.method import Extent, Method

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

    from multicoco.latent.controls import GaussianThoughts
    from multicoco.latent.thoughts import ThoughtSource


class Coconut(Method):
    """Question, latent block, the steps still written, answer.

    Attributes:
        has_markers: whether tokens around the thoughts say where they begin and end.
    """

    section: ClassVar[str] = SECTION
    Keys = CoconutKeys
    has_thoughts = True
    has_markers: ClassVar[bool] = True

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
            ends_early=keys.advance_when_accuracy is not None,
        )

    def is_learned(self, stage: int, accuracy: float | None) -> bool:
        enough, is_last = self.keys.advance_when_accuracy, stage > self.schedule.max_latent_stage
        return enough is not None and accuracy is not None and accuracy >= enough and not is_last

    @property
    def collapse_below(self) -> float | None:
        return self.keys.collapse_below

    @property
    def keys(self) -> CoconutKeys:
        return self.section_of(CoconutKeys)

    @property
    def borrows(self) -> bool:
        return self.keys.thoughts == "borrowed"

    @property
    def _tokens(self) -> LatentTokens:
        assert self.latent_tokens is not None
        return self.latent_tokens

    def _block(self, n_thoughts: int) -> list[int]:
        return self._tokens.block(n_thoughts) if self.has_markers else []

    @property
    def _asked_thoughts(self) -> int | None:
        """The number that eval_config asks for, of a method that has any."""
        return self.config.eval_config.asked_thoughts if self.puts_thoughts else None

    @property
    def _recurs(self) -> bool:
        return self.keys.thoughts not in ("pause", "noise")

    @property
    def latent_init_token(self) -> str | None:
        return self.keys.latent_init_token

    def learning_rate(self, stage: int) -> Rates:
        rates: Sequence[Rates] = self.keys.stage_lr or [self.config.lr]
        return rates[min(stage - self.schedule.first_stage, len(rates) - 1)]

    def train_row(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> tuple[list[int], list[int]]:
        n_replaced, n_latents = self.train_counts(tokens, stage, epoch, example_id)
        return layout(tokens, n_replaced, self._block(n_latents))

    def train_counts(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> tuple[int, int]:
        """(written steps that are replaced, thoughts in their place) of a `train_row`."""
        n_steps = len(tokens.steps)
        drawn = self.schedule.example_stage(stage, epoch, example_id, n_steps)
        return self.schedule.train_counts(drawn, n_steps)

    def prompt_row(self, tokens: ExampleTokens, stage: int) -> list[int]:
        asked = self._asked_thoughts
        n_latents = self.schedule.eval_latents(stage, len(tokens.steps)) if asked is None else asked
        return [*tokens.prompt, *self._block(n_latents)]

    def donor_row(self, tokens: ExampleTokens, input_ids: list[int]) -> list[int]:
        return [*tokens.prompt, *self._block(self.count_thoughts(input_ids))]

    @property
    def pass_schedule(self) -> PassSchedule:
        if not self._recurs:
            return OnePass()
        iterations = self.keys.jacobi_iterations
        return SEQUENTIAL if iterations is None else Jacobi(iterations)

    def passes(self, stage: int) -> int:
        return self.pass_schedule.n_passes(self.schedule.max_latents(stage))

    def prompt_passes(self, stage: int) -> int:
        asked = self._asked_thoughts
        return self.pass_schedule.n_passes(self.schedule.max_latents(stage) if asked is None else asked)

    def extent(self, tokens: ExampleTokens, stage: int) -> Extent:
        # an example that draws its stage may write all of its steps
        replaced = 0 if self.schedule.uniform_prob else self.schedule.train_counts(stage, len(tokens.steps))[0]
        written = sum(map(len, tokens.steps[replaced:])) + len(tokens.answer)
        context, n_latents = len(tokens.prompt) + self.has_markers, self.schedule.max_latents(stage)
        if self.passes(stage) == 1:
            context, n_latents = context + n_latents, 0
        return Extent(context, n_latents, written + self.has_markers)

    def thought_source(self) -> ThoughtSource:
        from multicoco.latent.controls import another_rows

        return another_rows if self.borrows else super().thought_source()

    def projection(self, model: PreTrainedModel) -> Module | None:
        from multicoco.latent.thoughts import Projection

        kind, norm = self.keys.projection, self.keys.norm
        is_wanted = (kind, norm) != ("none", "none")
        return Projection(model, kind, norm == "embedding", self.config.seed) if is_wanted else None

    @property
    def gradient_passes(self) -> int | None:
        return 0 if self.keys.thoughts == "detached" else self.keys.gradient_passes

    def fixed_thoughts(self, model: PreTrainedModel) -> GaussianThoughts | None:
        from multicoco.latent.controls import GaussianThoughts

        if self.keys.thoughts != "noise":
            return None
        most = max(self.schedule.max_latent_stage * self.schedule.c_thought, self._asked_thoughts or 0)
        return GaussianThoughts(self._tokens.latent, most, model.get_decoder())
