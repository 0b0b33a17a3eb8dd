"""What the trainer, the evaluator and the planner ask of a training method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from multicoco.config.rates import Rates
from multicoco.config.section import MethodKeys
from multicoco.curriculum import ExampleTokens, LatentTokens, StageSchedule, Supervision, layout
from multicoco.latent.schedule import SEQUENTIAL, OnePass, PassSchedule
from multicoco.registry import load

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

    from multicoco.config import RunConfig
    from multicoco.data.prompt import Asked
    from multicoco.latent.controls import GaussianThoughts
    from multicoco.latent.objective import Objective
    from multicoco.latent.thoughts import ThoughtSource

Own = TypeVar("Own", bound=MethodKeys)


class Extent(NamedTuple):
    """Columns of a row: before the first thought, of thoughts that take a pass each, and after, with the loss; and, if
    it has a branch, what this shares of the context, and its own."""

    context: int
    thoughts: int
    written: int
    shared: int = 0
    branch: int = 0

    @property
    def length(self) -> int:
        """Positions that the longer of the two ways takes."""
        return max(self.context + self.thoughts + self.written, self.shared + self.branch)


class Part(NamedTuple):
    """Optimizer steps first .. end - 1 of an epoch, which are of one stage."""

    stage: int
    first: int
    end: int


class Beside(NamedTuple):
    """What an example makes of a call of the language model, or of a copy, that the objective asks for besides: rows,
    and in each columns that are read and columns that are written, with a loss."""

    rows: int
    read: int
    written: int


class Method:
    """One way to train and to answer. The methods below are all that the rest of the engine asks.

    Args:
        config: the run's.
        latent_tokens: ids of the tokens around and of the thoughts; None where the vocabulary has none, and where only
            numbers are asked for, as by the planner.

    Attributes:
        section, Keys: name and keys of its section of the run config; several methods may share one.
        own_section, OwnKeys: of a second one, of a method that shares the first.
        has_thoughts: whether the latent tokens must be in the vocabulary.
        restarts_schedule: whether the learning rate's schedule starts again with the optimizer, at each stage.
        needs_steps: whether it learns from written steps, so that data without any are refused.
        may_refuse: whether there are examples that it cannot learn from, which `extent` refuses: all are asked at the
            start.
        asked: what the prompt asks the model for.
        schedule: from epochs to stages.
    """

    section: ClassVar[str | None] = None
    Keys: ClassVar[type[MethodKeys] | None] = None
    own_section: ClassVar[str | None] = None
    OwnKeys: ClassVar[type[MethodKeys] | None] = None
    has_thoughts: ClassVar[bool] = False
    restarts_schedule: ClassVar[bool] = True
    needs_steps: ClassVar[bool] = False
    may_refuse: ClassVar[bool] = False
    asked: ClassVar[Asked] = "reasoning"

    def __init__(self, config: RunConfig, latent_tokens: LatentTokens | None = None):
        self.config = config
        self.latent_tokens = latent_tokens
        self.schedule = self._schedule()

    @classmethod
    def sections(cls) -> dict[str, type[MethodKeys]]:
        """Its sections of the run config."""
        both = ((cls.section, cls.Keys), (cls.own_section, cls.OwnKeys))
        return {name: keys for name, keys in both if name is not None and keys is not None}

    def section_of(self, keys: type[Own]) -> Own:
        """Its section of the run config that has these keys; the config's static type has none of methods'."""
        name = next(name for name, own in self.sections().items() if own is keys)
        section: Own = getattr(self.config, name)
        return section

    def _schedule(self) -> StageSchedule:
        """One stage, 0, for the whole run."""
        return StageSchedule(epochs_per_stage=self.config.num_epochs)

    def parts(self, epoch: int, steps_per_epoch: int) -> Sequence[Part]:
        """An epoch's stages in their order, which together are all of its steps."""
        return [Part(self.schedule.stage(epoch), 0, steps_per_epoch)]

    def is_learned(self, stage: int, accuracy: float | None) -> bool:
        """Whether a stage is over because of an evaluation at the end of an epoch."""
        return False

    @property
    def collapse_below(self) -> float | None:
        """The share of the best accuracy below which a stage has collapsed, and training stops; None: never."""
        return None

    def end_stages_after(self, epochs: Sequence[int]) -> None:
        """Has stages end early, after so many finished epochs each: all that have, of the run."""
        self.schedule = replace(self.schedule, ended_early=tuple(epochs))

    @property
    def latent_init_token(self) -> str | None:
        """The token whose embedding the latent tokens start from; None: the tokenizer's eos."""
        return None

    def learning_rate(self, stage: int) -> Rates:
        """The peak learning rate of a stage, or of each part in it."""
        return self.config.lr

    def train_row(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> tuple[list[int], list[int]]:
        """A training example at a stage: input_ids and labels, both (T,); see `curriculum.layout`.

        A function of its arguments and the config alone, so that it is the same on any number of ranks.
        """
        return layout(tokens, n_replaced=0, latent_block=())

    def prompt_row(self, tokens: ExampleTokens, stage: int) -> list[int]:
        """What the model is given at evaluation: input_ids (T,)."""
        return tokens.prompt

    @property
    def borrows(self) -> bool:
        """Whether a row with thoughts comes with one of another example, its donor, whose thoughts it is fed."""
        return False

    def donor_row(self, tokens: ExampleTokens, input_ids: list[int]) -> list[int]:
        """An example that makes the thoughts of another one, which is laid out as input_ids: its own input_ids, both
        (T,). Asked of methods that borrow.
        """
        raise NotImplementedError

    def count_thoughts(self, input_ids: Sequence[int]) -> int:
        """Of a row, (T,)."""
        return input_ids.count(self.latent_tokens.latent) if self.latent_tokens else 0

    def supervision(self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str) -> Supervision | None:
        """What its loss asks of a `train_row` beside the labels."""
        return None

    def further_rows(
        self, tokens: ExampleTokens, stage: int, epoch: int, example_id: str
    ) -> dict[str, tuple[list[int], list[int]]]:
        """What else than its `train_row` is written of an example in training, by what it is: input_ids and labels."""
        return {}

    def rows(self, stage: int) -> int:
        """Rows that an example takes in a training batch: its own, and its donor's."""
        return 2 if self.borrows and self.passes(stage) > 1 else 1

    def passes(self, stage: int) -> int:
        """Passes over the language model in a training step: of the stage alone, as ZeRO-3 needs."""
        return 1

    def prompt_passes(self, stage: int) -> int:
        """The most passes that a `prompt_row` takes."""
        return 1

    def extent(self, tokens: ExampleTokens, stage: int) -> Extent:
        """The most columns that a `train_row` can have in a stage, whatever it draws.

        Raises:
            UserError: it cannot be learned from, see `may_refuse`.
        """
        return Extent(len(tokens.prompt), 0, sum(map(len, tokens.steps)) + len(tokens.answer))

    def beside(self, tokens: ExampleTokens, stage: int) -> Beside | None:
        """The most of a `train_row` in a stage; of an objective that runs the language model once more."""
        return None

    def said(self, stage: int) -> int:
        """The most words that an example's thoughts are made to say in a stage, each with a loss."""
        return 0

    @property
    def puts_thoughts(self) -> bool:
        """Whether there are any in its rows; controls that put nothing in the place of steps have the tokens alone."""
        return self.has_thoughts and self.schedule.c_thought > 0

    @property
    def pass_schedule(self) -> PassSchedule:
        """In which order thoughts are made; with `OnePass` they wait for no pass, and latent columns hold what
        `fixed_thoughts` gives."""
        return SEQUENTIAL if self.has_thoughts else OnePass()

    def thought_source(self) -> ThoughtSource:
        """Where a thought's content comes from."""
        from multicoco.latent.thoughts import hidden_state

        return hidden_state

    def projection(self, model: PreTrainedModel) -> Module | None:
        """What is made of a thought before it is fed, (..., D) -> (..., D); it is trained and saved with the model.
        None: nothing."""
        return None

    @property
    def gradient_passes(self) -> int | None:
        """Through how many of an example's last passes the gradient goes, from a thought to the pass that made it;
        None: through all."""
        return None

    def fixed_thoughts(self, model: PreTrainedModel) -> GaussianThoughts | None:
        """What latent columns hold that wait for no pass; None: the embedding of their token.

        Raises:
            ValueError: the model has no such thing.
        """
        return None

    def objective(self, model: PreTrainedModel) -> Objective | None:
        """What is minimised; None: the language model's loss. It is given what `supervision` asks of the rows."""
        return None

    def counts(self, batch: dict[str, Any]) -> list[int]:
        """Of a collated batch, what the parts of the objective are divided by, once summed over the global batch."""
        return []


def method_class(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        UserError: there is none.
    """
    found: type[Method] = load("methods", name)
    return found


def evaluated_methods(config: RunConfig) -> list[str]:
    """The methods that a run evaluates by: those that `eval_config` names, else the one that it trains."""
    trained = config.trained_method
    named = (trained if stands_for(name, trained) else name for name in config.eval_config.named_methods)
    return [*dict.fromkeys(named)] or [trained]


def stands_for(name: str, trained: str) -> bool:
    """Whether to ask by a method is to ask by the trained one, which is of its kind: a control of Coconut is asked as
    it was trained where `coconut` is named."""
    return issubclass(method_class(trained), method_class(name))


def thinking_method(config: RunConfig) -> type[Method] | None:
    """The method with thoughts that a run trains or evaluates by, if it does."""
    used = [method_class(name) for name in (config.trained_method, *evaluated_methods(config))]
    return next((method for method in used if method.has_thoughts), None)
