"""Append-and-attend of one column, all of it on the device: nothing that the host decides depends on where the column
stands, so that a CUDA graph of it can be replayed anywhere in the cache.

The bookkeeping of `operator` is left to whoever replays it: a column runs backward after all that follow it, and never
first.
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multicoco_kernels.cache import Reach
from multicoco_kernels.operator import implementation


class Column(NamedTuple):
    """Where a column reads and writes.

    Attributes:
        reach: of which `start` is read when it runs; `end` is the cache's.
        gradients: of keys and of values, (B, H_kv, L, D) each, what later columns' backwards have left.
    """

    reach: Reach
    gradients: tuple[Tensor, Tensor]


def reads_on_device(kernel: str, device: torch.device) -> bool:
    """Whether a kernel, one of KERNELS, has what `column_attention` calls: Triton's, and the reference."""
    return hasattr(implementation(kernel, device), "attend")


def column_attention(q: Tensor, k: Tensor, v: Tensor, column: Column, scale: float, kernel: str) -> Tensor:
    """As `cached_attention`, of one column without window or cap.

    Args:
        q: (B, H, 1, D).
        k, v: (B, H_kv, 1, D).
        kernel: one that reads on the device.

    Returns: (B, H, 1, D).
    """
    out: Tensor = _ColumnAttention.apply(q, k, v, column, scale, implementation(kernel, q.device))
    return out


class _ColumnAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, column: Column, scale: float, kernel: ModuleType) -> Tensor:
        reach = column.reach
        reach.keys.index_copy_(2, reach.start, k)
        reach.values.index_copy_(2, reach.start, v)
        out: Tensor
        out, lse = kernel.attend(q, reach, scale)
        ctx.save_for_backward(q, out, lse)
        ctx.kernel, ctx.column, ctx.scale = kernel, column, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, out, lse = ctx.saved_tensors
        reach, gradients = ctx.column
        grad_q = ctx.kernel.differentiate(grad_out, q, out, lse, reach, ctx.scale, gradients)
        grad_k, grad_v = (x.index_select(2, reach.start).to(q.dtype) for x in gradients)
        return grad_q, grad_k, grad_v, None, None, None
