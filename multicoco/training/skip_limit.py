"""Giving up when nothing is learned any more: too many steps in a row were skipped."""

import math
from typing import Any

from torch import Tensor

from multicoco.engine.ranks import agree, gather, rank
from multicoco.errors import UserError
from multicoco.training.batches import TrainingBatches
from multicoco.training.position import Position


class SkipLimit:
    """Counts the steps in a row whose gradient was not finite.

    Args:
        limit: so many end the run.
    """

    def __init__(self, limit: int, batches: TrainingBatches):
        self.limit = limit
        self.batches = batches
        self.in_a_row = 0

    def add(self, skipped: bool) -> bool:
        """Notes a step; whether it was one too many."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        return self.in_a_row == self.limit

    def give_up(self, micro_batches: list[dict[str, Any]], losses: Tensor, at: Position) -> None:
        """Every rank tells what it trained on in the last step. Collective.

        Raises:
            UserError: always; on all ranks.
        """
        seen = []
        for batch, loss in zip(micro_batches, losses.tolist(), strict=True):
            what = "loss" if math.isfinite(loss) else "LOSS NOT FINITE"
            seen.append(f"rank {rank()}: {what} of {', '.join(self.batches.ids(batch))}")
        said = "\n  ".join(line for lines in gather(seen) for line in lines)
        message = (
            f"step {at.step} (stage {at.stage}) is number {self.in_a_row} in a row that was skipped: its gradient is "
            f"not finite. It was trained on\n  {said}\n"
            "Lower lr or max_grad_norm, train in bf16 instead of fp16, look at these examples, or go on from an "
            "earlier checkpoint; max_skipped_steps allows more"
        )
        agree(lambda: _raise(message))


def _raise(message: str) -> None:
    raise UserError(message)
