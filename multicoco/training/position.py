"""Where a run stands while it trains."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Position:
    """Moves on with the run, and is what a checkpoint remembers of it.

    Attributes:
        epoch: finished epochs.
        epoch_step: optimizer steps into the epoch after the finished ones.
        step: optimizer steps of the whole run.
        stage: the one trained last; None before the first.
        best_accuracy: of this stage's evaluations so far; those of other stages do not compare.
        earlier_best: likewise of the stage before.
        evaluated: whether the evaluation after the last finished epoch has been, if one is due.
        tokens: trained on so far, of all ranks and without padding; on the device between two saves.
        passes: of the language model so far, forward, on each rank.
        peak_memory: bytes, of the rank that has taken the most, in earlier starts.
        ended_early: the numbers of finished epochs after which a stage has ended before its time.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    stage: int | None = None
    best_accuracy: float | None = None
    earlier_best: float | None = None
    evaluated: bool = True
    tokens: int | Tensor = 0
    passes: int = 0
    peak_memory: int = 0
    ended_early: list[int] = field(default_factory=list)

    def note_accuracy(self, accuracy: float | None) -> bool:
        """Of an evaluation; whether it is the best of the stage so far."""
        improved = accuracy is not None and (self.best_accuracy is None or accuracy > self.best_accuracy)
        if improved:
            self.best_accuracy = accuracy
        return improved
