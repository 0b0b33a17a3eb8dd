"""What becomes of the thoughts between two log entries: collapse shows in them before accuracy falls."""

from collections import deque
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from multicoco.engine.ranks import gather, rank, world_size
from multicoco.latent.lens import effective_rank

EXAMPLES = 128  # at most: what is read takes little of a step's time, and fewer would tell a collapse too


class ThoughtWindow:
    """The thoughts of the last optimizer steps since the last reading: of as many steps as have EXAMPLES examples
    together, or of the first EXAMPLES of a larger one. Which these are does not depend on the number of ranks.

    Args:
        latent_token_id: None where no position waits for a thought.
        batch_size: of a micro-batch.
        accumulation: micro-batches of a step.
    """

    def __init__(self, latent_token_id: int | None, batch_size: int, accumulation: int):
        self.latent_token_id = latent_token_id
        self.batch_size = batch_size
        # of each micro-batch (B, T) what is latent in rows that count, on the CPU, and (B, C, D) all rows' thoughts
        self.steps: deque[list[tuple[Tensor, Tensor]]]
        self.steps = deque(maxlen=max(1, EXAMPLES // (batch_size * accumulation * world_size())))

    def add(self, micro_batches: Sequence[dict[str, Any]], thoughts: Sequence[Tensor], skipped: bool) -> None:
        """One optimizer step of this rank; does not wait for the device.

        Args:
            thoughts: (B, C, D), what was fed to the C latent columns of each micro-batch, without a graph.
            skipped: the step was, and its thoughts may not be finite.
        """
        if self.latent_token_id is None or skipped:
            return
        step = []
        for number, (batch, fed) in enumerate(zip(micro_batches, thoughts, strict=True)):
            first = (number * world_size() + rank()) * self.batch_size  # of its examples in the global batch
            if first < EXAMPLES:
                is_latent = batch["input_ids"] == self.latent_token_id
                counts = torch.tensor(batch["counted"]) & (first + torch.arange(len(is_latent)) < EXAMPLES)
                columns = is_latent.any(0)
                step.append(((is_latent & counts[:, None])[:, columns], fed))
        self.steps.append(step)

    def read(self) -> dict[str, float]:
        """The mean norm of the thoughts, and the effective rank of the examples' k-th ones, as the mean over k; on rank
        0, if there were any. Collective where there may be."""
        if self.latent_token_id is None:
            return {}
        own = [(_places(is_latent), fed.cpu()[is_latent]) for step in self.steps for is_latent, fed in step]
        self.steps.clear()
        pairs = [pair for of_rank in gather(own) for pair in of_rank if len(pair[0])]
        if rank() or not pairs:
            return {}
        places, thoughts = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return {
            "thoughts/norm": float(torch.linalg.vector_norm(thoughts.double(), dim=-1).mean()),
            "thoughts/effective_rank": fmean(effective_rank(thoughts[places == k]) for k in places.unique()),
        }


def _places(is_latent: Tensor) -> Tensor:
    """(B, C) -> (n,): the how-many-eth of its row each is, from 0."""
    return (is_latent.cumsum(1) - 1)[is_latent]
