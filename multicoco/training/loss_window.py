"""Loss and throughput between two log entries."""

from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor


class LossWindow:
    """Loss and throughput over the steps since the last reading. Reading is collective."""

    def __init__(self, device: torch.device):
        self.device = device
        self._start()

    def _start(self) -> None:
        self.started, self.steps = perf_counter(), 0
        self.loss = torch.zeros((), device=self.device)
        self.tokens = torch.zeros((), device=self.device, dtype=torch.long)

    def add(self, loss_share: Tensor, counts: Tensor, skipped: bool) -> None:
        """One optimizer step: this rank's share of the loss, and the global (labelled, all) token counts.

        The loss of a skipped step is not finite, or not worth looking at, and does not count.
        """
        if not skipped:
            self.steps += 1
            self.loss += loss_share
        self.tokens += counts[1]

    def read(self) -> dict[str, float]:
        """The mean loss per step, unless all were skipped, and tokens per second over all ranks."""
        dist.all_reduce(self.loss)
        seconds = perf_counter() - self.started
        metrics = {"train/tokens_per_s": int(self.tokens) / seconds}
        if self.steps:
            metrics["train/loss"] = self.loss.item() / self.steps
        self._start()
        return metrics
