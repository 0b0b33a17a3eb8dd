"""What a run looks out for between two batches: a scheduler's notice to end, and a checkpoint that all have written."""

import torch
import torch.distributed as dist

from multicoco.engine.preemption import Preempted, StopSignal
from multicoco.training.saver import Saver


class Lookout:
    """One small collective between batches."""

    def __init__(self, saver: Saver, device: torch.device):
        self.saver = saver
        self.device = device
        self.stop = StopSignal()

    def __call__(self) -> None:
        """Ends the run if any rank was signalled to, and finishes a checkpoint that all ranks have written. Collective.

        Raises:
            Preempted: on all ranks.
            UserError: as `Saver.finish`.
        """
        flags = [self.stop.received is not None, self.saver.checkpoints.is_writing]
        shared = torch.tensor(flags, device=self.device).int()
        dist.all_reduce(shared)
        stopped, writing = shared.tolist()
        if stopped:
            raise Preempted
        if not writing:
            self.saver.finish()
