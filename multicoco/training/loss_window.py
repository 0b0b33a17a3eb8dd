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
        self.columns = 0

    def add(self, loss_share: Tensor, counts: Tensor, columns: int, skipped: bool) -> None:
        """One optimizer step: this rank's share of the loss, the global (labelled, all) token counts, and the columns
        of this rank's batches, padding included.

        The loss of a skipped step is not finite, or not worth looking at, and does not count.
        """
        if not skipped:
            self.steps += 1
            self.loss += loss_share
        self.tokens += counts[1]
        self.columns += columns

    def read(self) -> dict[str, float]:
        """The mean loss per step, unless all were skipped; over all ranks, tokens per second and the share of columns
        that hold none."""
        dist.all_reduce(self.loss)
        columns = torch.tensor(self.columns, device=self.device)
        dist.all_reduce(columns)
        seconds, tokens = perf_counter() - self.started, int(self.tokens)
        metrics = {"train/tokens_per_s": tokens / seconds, "train/padding": 1 - tokens / int(columns)}
        if self.steps:
            metrics["train/loss"] = self.loss.item() / self.steps
        self._start()
        return metrics
