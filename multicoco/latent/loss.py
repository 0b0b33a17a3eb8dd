"""Language-model loss on labelled positions only, never holding the logits of a whole batch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from multicoco.curriculum import IGNORE_INDEX
from multicoco.latent.products import autocast_dtype, linear
from multicoco.latent.rescaling import AS_THEY_ARE, Rescaling

CHUNK_POSITIONS = 256  # at 151,674 words: 155 MB of logits in fp32 at a time


class _SummedCrossEntropy(torch.autograd.Function):
    """hidden (N, D), weight (V, D), bias (V,), targets (N,) -> scalar, sum of log sum exp(logits) - logits[target].

    Backward makes the logits of a chunk again, in their place their gradient, softmax(logits) - onehot(target), times
    the slope of what they are rescaled by, and adds what follows from it to one gradient of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rescaling: Rescaling
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        lse, chosen = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(2))
        for rows in _chunks(hidden):
            logits = rescaling.in_place(linear(hidden[rows], weight, bias).to(wide))  # [n, V]
            lse[rows] = logits.logsumexp(-1)
            chosen[rows] = logits.gather(1, targets[rows, None].clamp(min=0))[:, 0]
        ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.rescaling = rescaling
        return (lse - chosen).masked_fill(targets == IGNORE_INDEX, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        wanted = zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        grad_hidden, grad_weight, grad_bias = (torch.zeros_like(x) if needed else None for x, needed in wanted)
        for rows in _chunks(hidden):
            logits = ctx.rescaling.in_place(linear(hidden[rows], weight, bias).to(lse.dtype))
            slope = ctx.rescaling.slope(logits)
            grad_logits = logits.sub_(lse[rows, None]).exp_()
            counts = (targets[rows, None] != IGNORE_INDEX).to(lse.dtype)
            grad_logits.scatter_add_(1, targets[rows, None].clamp(min=0), -counts)
            grad_logits = grad_logits.mul_(grad * counts)
            if slope is not None:
                grad_logits.mul_(slope)
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = linear(grad_logits, weight.t())
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.t(), hidden[rows])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None


def _chunks(hidden: Tensor) -> list[slice]:
    return [slice(start, start + CHUNK_POSITIONS) for start in range(0, len(hidden), CHUNK_POSITIONS)]


class LabelledCrossEntropy(nn.Module):
    """Sum of the cross-entropies at the given positions, projected chunk by chunk.

    The head is called as a function of its weight, inside one module call: ZeRO-3 gathers a weight per module
    call, and the number of chunks may differ between ranks while the number of calls must not.

    Args:
        rescaling: what the model makes of its head's logits.
    """

    def __init__(self, rescaling: Rescaling = AS_THEY_ARE):
        super().__init__()
        self.rescaling = rescaling

    def forward(self, hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
        """hidden (N, D), targets (N,) -> scalar, at least fp32. Logits are made again in backward."""
        weight, bias = head.weight, getattr(head, "bias", None)  # a head of which peft trains rows has none
        if dtype := autocast_dtype(hidden.device):  # backward, which makes the logits again, runs outside of autocast
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        loss: Tensor = _SummedCrossEntropy.apply(hidden, weight, bias, targets, self.rescaling)
        return loss
