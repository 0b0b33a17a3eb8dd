"""Where a run begins: at its beginning, after skipped epochs, or where a checkpoint of its own stands."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from deepspeed import DeepSpeedEngine

from multicoco.config import RunConfig
from multicoco.data.sources.location import locate
from multicoco.engine.checkpoint import Checkpoints
from multicoco.engine.manifest import damage
from multicoco.engine.ranks import agree, rank
from multicoco.engine.resume import check_unchanged, data_hash
from multicoco.engine.trainer_state import TrainerState, age_key, all_checkpoints, read_state
from multicoco.errors import UserError
from multicoco.training.position import Position
from multicoco.training.stages import Stages


class Start:
    """Finds the beginning. All ranks call each method.

    Args:
        allow_change: config keys that may differ from those of the checkpoint the run goes on from.
    """

    def __init__(self, config: RunConfig, checkpoints: Checkpoints, allow_change: Collection[str]):
        self.config = config
        self.checkpoints = checkpoints
        self.allow_change = allow_change
        # not `in`: 1, an epoch to skip, equals True
        self.goes_on = config.resume is True or config.resume == "auto"

    def check_folder(self) -> TrainerState | None:
        """Before the long part of the start; what is found is checked again when the folder is this run's own.

        Returns: the state of the newest checkpoint of a run that goes on.

        Raises:
            UserError: checkpoints are missing or in the way, or all epochs are trained.
        """
        found = agree(self._newest, only_rank_0=True)
        if found is None:
            return None
        newest, state = found
        # if damaged, it will be put aside, and its epoch trained again
        is_finished = state.is_finished(self.config.num_epochs, bool(self.config.val_path))
        if is_finished and not damage(newest):
            agree(lambda: self._refuse_finished(newest, state), only_rank_0=True)
        return state

    def _newest(self) -> tuple[Path, TrainerState] | None:
        """The newest checkpoint whose state can be read."""
        exist = all_checkpoints(self.checkpoints.root)
        if self.config.resume is True and not exist:
            raise UserError(f"no checkpoint in {self.checkpoints.root}: set resume: auto to start from the beginning")
        if not self.goes_on and exist:
            raise UserError(
                f"{self.config.run_dir} already holds checkpoints: set resume: auto to go on with that run, "
                "or another name"
            )
        for path in sorted(exist, key=age_key, reverse=True):
            with suppress(UserError):
                return path, read_state(path)
        return None

    def _refuse_finished(self, newest: Path, state: TrainerState) -> NoReturn:
        raise UserError(
            f"{newest} has been trained for {state.epoch} epochs and num_epochs is {self.config.num_epochs}: "
            "nothing is left to train. Raise num_epochs (with --allow-change num_epochs), or take another name"
        )

    def hash_data(self) -> dict[str, str]:
        """SHA-256 of the data files, by the config's key."""
        return agree(self._hash_data, only_rank_0=True)

    def _hash_data(self) -> dict[str, str]:
        paths = {"train_path": self.config.train_path, "val_path": self.config.val_path}
        located = {key: locate(self.config.data_dir, path) for key, path in paths.items() if path}
        streamed = {"train_path"} if self.config.streaming else set()
        return {key: data_hash(location, key in streamed) for key, location in located.items()}

    def find(
        self, engine: DeepSpeedEngine, stages: Stages, data: dict[str, str], global_batch: int
    ) -> tuple[Position, str | None]:
        """Loads the newest whole checkpoint into the engine, if the run goes on from one.

        Returns: where the run stands, and the id of the W&B run to go on with.

        Raises:
            UserError: the checkpoint is of another run, damaged, or does not fit.
        """
        config = self.config
        if not self.goes_on:
            return Position(epoch=int(config.resume)), None
        path = self.checkpoints.newest_whole()
        if path is None:
            return Position(), None
        state = agree(lambda: read_state(path), only_rank_0=True)
        changes = agree(
            lambda: check_unchanged(path, state, config, data, global_batch, self.allow_change), only_rank_0=True
        )
        if rank() == 0:
            print(f"going on from {path}", *(f"  changed: {change}" for change in changes), sep="\n", flush=True)
        stages.method.end_stages_after(state.ended_early)
        stages.start_schedule(state.stage)  # DeepSpeed then puts it where it was
        agree(lambda: self.checkpoints.load(engine, path, state))
        is_evaluated = state.evaluated or state.accuracy is not None or state.epoch_step > 0
        position = Position(
            epoch=state.epoch,
            epoch_step=state.epoch_step,
            step=state.step,
            stage=state.stage,
            best_accuracy=state.best_accuracy,
            earlier_best=state.earlier_best,
            evaluated=is_evaluated,
            tokens=state.tokens,
            passes=state.passes,
            peak_memory=state.peak_memory,
            ended_early=list(state.ended_early),
        )
        if state.epoch_step == 0:
            stages.note_accuracy(state.accuracy, position)
        return position, state.wandb_id
