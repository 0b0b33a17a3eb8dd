"""A stage's beginning: the optimizer and the learning-rate schedule start again."""

from collections.abc import Sequence

from deepspeed import DeepSpeedEngine

from multicoco.config import RunConfig
from multicoco.engine.checkpoint import Checkpoints
from multicoco.engine.deepspeed import forget_trace
from multicoco.engine.optimizer import reset_optimizer_state, start_schedule
from multicoco.methods import Method, Part
from multicoco.training.collapse import stop_if_collapsed
from multicoco.training.position import Position


class Stages:
    """Takes the engine from stage to stage of a method's curriculum."""

    def __init__(
        self,
        config: RunConfig,
        engine: DeepSpeedEngine,
        method: Method,
        steps_per_epoch: int,
        checkpoints: Checkpoints,
    ):
        self.config = config
        self.engine = engine
        self.method = method
        self.steps_per_epoch = steps_per_epoch
        self.checkpoints = checkpoints

    @property
    def restarts_schedule(self) -> bool:
        """Whether each stage has a schedule of its own, and not the run one."""
        return self.config.reset_optimizer and self.method.restarts_schedule

    def of_epoch(self, epoch: int) -> Sequence[Part]:
        return self.method.parts(epoch, self.steps_per_epoch)

    def enter(self, stage: int, at: Position) -> None:
        """At a transition the optimizer and, as the method says, the schedule start again; or both go on."""
        if stage == at.stage:
            return
        is_first = at.stage is None
        at.stage, at.earlier_best, at.best_accuracy = stage, at.best_accuracy, None
        if self.engine.zero_optimization_stage() == 3:
            forget_trace(self.engine)
        if self.config.reset_optimizer and not is_first:
            reset_optimizer_state(self.engine)
        if self.restarts_schedule or is_first:
            self.start_schedule(stage)

    def note_accuracy(self, accuracy: float | None, at: Position) -> None:
        """Of the evaluation after the epochs that are finished: a stage that is learned ends.

        Raises:
            UserError: it has collapsed (`stop_if_collapsed`), and training would go on.
        """
        if at.stage is None or accuracy is None:
            return
        if self.method.is_learned(at.stage, accuracy):
            at.ended_early.append(at.epoch)
            self.method.end_stages_after(at.ended_early)
        if self.method.collapse_below is not None and at.epoch < self.config.num_epochs:
            is_over = self.of_epoch(at.epoch)[0].stage != at.stage
            stop_if_collapsed(self.method.collapse_below, accuracy, at, is_over, self.checkpoints)

    def start_schedule(self, stage: int) -> None:
        """From its first step; it spans the stage or, without restarts, the whole run."""
        parts = [part for epoch in range(self.config.num_epochs) for part in self.of_epoch(epoch)]
        spanned = [part for part in parts if part.stage == stage] if self.restarts_schedule else parts
        total_steps = sum(part.end - part.first for part in spanned)
        start_schedule(self.engine, self.config, self.method.learning_rate(stage), total_steps)
