"""Where a run stands, as its checkpoints say, and which of several checkpoints is meant."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from multicoco.errors import UserError

EVALUATION = "evaluation.json"  # of a checkpoint: written after it, and not among the files that its manifest seals


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands.

    Attributes:
        epoch: finished epochs.
        stage: the one trained last.
        step: optimizer steps of the whole run.
        epoch_step: optimizer steps into the epoch after the finished ones.
        accuracy: of the evaluation after the last epoch; None without one, within an epoch, or with no known answer.
        best_accuracy: of the stage so far.
        earlier_best: likewise of the stage before.
        global_batch, world_size, zero_stage: with which it was written.
        data: SHA-256 of the files the records came from.
        wandb_id: of the W&B run, to go on with it.
        method: that trained it.
        prompt_date: what a chat template that writes the date was given.
        versions: of the software that wrote it.
        evaluated: whether there was an evaluation after its last epoch.
        tokens, passes, peak_memory: what the run has cost so far: tokens trained on, of all ranks; forward passes of
            the language model, on each rank; bytes of the rank that has taken the most.
        ended_early: the numbers of finished epochs after which a stage has ended before its time.
    """

    epoch: int
    stage: int
    step: int
    epoch_step: int = 0
    accuracy: float | None = None
    best_accuracy: float | None = None
    earlier_best: float | None = None
    global_batch: int | None = None
    world_size: int | None = None
    zero_stage: int | None = None
    data: dict[str, str] = field(default_factory=dict)
    wandb_id: str | None = None
    method: str | None = None
    prompt_date: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    evaluated: bool = False
    tokens: int = 0
    passes: int = 0
    peak_memory: int = 0
    ended_early: list[int] = field(default_factory=list)

    __pydantic_config__ = ConfigDict(extra="forbid")  # of what is read from files

    @property
    def name(self) -> str:
        return f"epoch_{self.epoch:04d}" + (f"_step_{self.step:08d}" if self.epoch_step else "")

    def is_finished(self, num_epochs: int, evaluates: bool) -> bool:
        """Whether nothing is left to a run of so many epochs but, if it does not evaluate, an evaluation."""
        return self.epoch >= num_epochs and (self.evaluated or not evaluates)


_STATE = TypeAdapter(TrainerState)


def all_checkpoints(root: Path) -> list[Path]:
    """The folders of the checkpoints below a run's `checkpoints`."""
    return sorted(path.parent for path in root.glob("epoch_*/trainer.json") if not path.parent.suffix)


def read_state(path: Path) -> TrainerState:
    """Of a checkpoint, with what its evaluation has added.

    Raises:
        UserError: a file is not what this version writes.
    """
    state = _read(path / "trainer.json")
    added = _read(path / EVALUATION) if (path / EVALUATION).exists() else {}
    try:
        return _STATE.validate_python(state | added)
    except ValidationError as error:
        key, problem = str(error.errors()[0]["loc"][0]), error.errors()[0]["msg"]
        raise UserError(
            f"{path / (EVALUATION if key in added else 'trainer.json')} cannot be read: {key}: {problem}; the "
            "checkpoint is damaged, or of another version"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    raise UserError(f"{path} cannot be read: it is no JSON object")


def age_key(path: Path) -> tuple[int, ...]:
    """Sorts checkpoints by age, from the name, since the files may be damaged: (epochs, steps)."""
    return tuple(int(part) for part in path.name.split("_") if part.isdigit())


def rank_key(state: TrainerState) -> tuple[int, float, int]:
    """Sorts evaluated checkpoints, the best one last: accuracies compare within a stage, so the later stage is before
    the earlier one; of equals the later checkpoint."""
    assert state.accuracy is not None
    return (state.stage, state.accuracy, state.epoch)
