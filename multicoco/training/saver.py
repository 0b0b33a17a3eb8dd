"""Saving while training goes on, and what it costs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic

from deepspeed import DeepSpeedEngine
from tqdm import tqdm

from multicoco.config import RunConfig
from multicoco.engine.checkpoint import Checkpoints
from multicoco.engine.deepspeed import peak_memory
from multicoco.engine.ranks import rank
from multicoco.engine.trainer_state import TrainerState
from multicoco.errors import UserError
from multicoco.models.backbone import Backbone
from multicoco.tracking import Tracker
from multicoco.training.position import Position


class Saver:
    """Writes checkpoints of a run, one at a time, and measures them.

    Args:
        origin: what all checkpoints of the run say alike.
        at: where the run stands, which moves on while it trains.
    """

    def __init__(
        self,
        config: RunConfig,
        checkpoints: Checkpoints,
        engine: DeepSpeedEngine,
        backbone: Backbone,
        tracker: Tracker,
        origin: TrainerState,
        at: Position,
    ):
        self.config = config
        self.checkpoints = checkpoints
        self.engine = engine
        self.backbone = backbone
        self.tracker = tracker
        self.origin = origin
        self.at = at
        self._started, self._slowest = 0.0, 0.0

    def save(self, awaits_evaluation: bool = False) -> None:
        """A checkpoint of where the run stands. It may be finished later: by the next one, or `finish`. Collective.

        Args:
            awaits_evaluation: `note_evaluation` is to follow. Then it is finished first: whatever goes wrong in the
                evaluation must not cost a trained epoch.

        Raises:
            UserError: this one or the one before could not be written, and `on_save_error` is to stop.
        """
        self.finish()
        self.at.peak_memory = max(self.at.peak_memory, peak_memory())
        state = self._state()
        self._started = monotonic()
        with self._errors():
            self.checkpoints.save(self.engine, self.backbone, state, self.config.to_yaml(), awaits_evaluation)
        if awaits_evaluation or not self.config.asynchronous_save:
            self.finish()
        self.tracker.log({"save/blocked_seconds": monotonic() - self._started}, self.at.step)

    def finish(self) -> None:
        """Waits for the checkpoint that is being written, if there is one. Collective.

        Raises:
            UserError: as `save`.
        """
        if not self.checkpoints.is_unfinished:
            return
        with self._errors():
            self.checkpoints.finish()
            seconds, grace = monotonic() - self._started, self.config.preemption_grace_seconds
            self.tracker.log({"save/seconds": seconds}, self.at.step)
            if seconds > max(grace, self._slowest) and rank() == 0:
                tqdm.write(
                    f"a save took {seconds:.0f} s, preemption_grace_seconds is {grace}: when preempted, this run may "
                    "have to go on from an earlier checkpoint; set save_every_steps",
                    file=sys.stderr,
                )
            self._slowest = max(self._slowest, seconds)

    def note_evaluation(self, accuracy: float | None, keep: bool) -> None:
        """Adds an evaluation to the checkpoint of where the run stands, or takes the checkpoint away. Collective.

        Raises:
            UserError: as `save`.
        """
        self.finish()
        with self._errors():
            self.checkpoints.note_evaluation(self._state().name, accuracy, self.at.best_accuracy, keep)

    def _state(self) -> TrainerState:
        at = self.at
        assert at.stage is not None
        return replace(
            self.origin,
            epoch=at.epoch,
            stage=at.stage,
            step=at.step,
            epoch_step=at.epoch_step,
            best_accuracy=at.best_accuracy,
            earlier_best=at.earlier_best,
            tokens=int(at.tokens),
            passes=at.passes,
            peak_memory=at.peak_memory,
            ended_early=list(at.ended_early),
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            if self.config.on_save_error == "stop":
                raise
            if rank() == 0:
                tqdm.write(f"error: {error}; training goes on (on_save_error: continue)", file=sys.stderr)
