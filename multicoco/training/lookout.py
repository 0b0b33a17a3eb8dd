"""What a run looks out for while it trains: a scheduler's notice to end, and a checkpoint that all have written."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from multicoco.engine.preemption import Preempted, StopSignal
from multicoco.training.saver import Saver


class OnItsWay:
    """Numbers of a device that the host will want: copied behind what the device is doing, and read when they are
    there."""

    def __init__(self, values: Tensor):
        self._values = values.to("cpu", non_blocking=True)
        self._arrived = torch.get_device_module(values.device).Event()
        self._arrived.record()

    def read(self) -> list[int]:
        """Waits for the copy, not for what was asked of the device after it."""
        self._arrived.synchronize()
        numbers: list[int] = self._values.tolist()
        return numbers


class Lookout:
    """What a rank has noticed goes to the others with a collective that there is anyway (`flags`, `heed`), or with one
    of its own (calling it)."""

    def __init__(self, saver: Saver, device: torch.device):
        self.saver = saver
        self.device = device
        self.stop = StopSignal()

    def flags(self) -> list[int]:
        """Whether this rank was signalled to, and is still writing a checkpoint; to be summed over the ranks."""
        return [int(self.stop.received is not None), int(self.saver.checkpoints.is_writing)]

    def heed(self, flags: Sequence[int]) -> None:
        """Ends the run if any rank was signalled to, and finishes a checkpoint that all ranks have written. Collective.

        Args:
            flags: the sums.

        Raises:
            Preempted: on all ranks.
            UserError: as `Saver.finish`.
        """
        stopped, writing = flags
        if stopped:
            raise Preempted
        if not writing:
            self.saver.finish()

    def __call__(self) -> None:
        """Between the batches of an evaluation. As `heed`."""
        shared = torch.tensor(self.flags(), device=self.device)
        dist.all_reduce(shared)
        self.heed(shared.tolist())
