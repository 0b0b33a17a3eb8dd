"""Language-model loss on labelled positions only, never holding the logits of a whole batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_POSITIONS = 1024  # at 151,674 words in bf16: 0.3 GB of logits at a time


def _chunk_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight, bias).to(torch.promote_types(hidden.dtype, torch.float32))
    return F.cross_entropy(logits, targets, reduction="sum")


class LabelledCrossEntropy(nn.Module):
    """Sum of the cross-entropies at the given positions, projected chunk by chunk.

    The head is called as a function of its weight, inside one module call: ZeRO-3 gathers a weight per module
    call, and the number of chunks may differ between ranks while the number of calls must not.
    """

    def forward(self, hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
        """hidden (N, D), targets (N,) -> scalar, at least fp32. Logits are recomputed in backward."""
        weight, bias = head.weight, getattr(head, "bias", None)  # a head of which peft trains rows has no bias
        chunks = zip(hidden.split(CHUNK_POSITIONS), targets.split(CHUNK_POSITIONS), strict=True)
        losses = [checkpoint(_chunk_loss, h, weight, bias, t, use_reentrant=False) for h, t in chunks]
        return torch.stack(losses).sum()
