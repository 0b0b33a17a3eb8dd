"""Attention over a static cache by the flash kernels of others, blocked over queries: fastest for long segments.

On the CPU, PyTorch's own. On GPUs, in bf16 and fp16, those of flash-attn where it is installed and else PyTorch's
build of them: both take rows of different lengths without padding, so padded columns are left out before the call,
and a query at padding gets 0. What no flash kernel computes (fp32 and fp64 on GPUs) is left to the reference.
None of them saves K or V: their backward is called with the cache as it is then.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multicoco_kernels import reference
from multicoco_kernels.cache import LayerCache

_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(q: Tensor, cache: LayerCache, start: int, scale: float) -> tuple[Tensor, Tensor]:
    """q (B, H, S, D) -> out (B, H, S, D), and the log-sum-exp as the kernel's backward wants it."""
    if q.device.type == "cpu":
        keys, values, mask = _dense(q, cache, start)
        out, lse = _cpu_forward(q, keys, values, 0.0, scale=scale, **mask)
        return out, lse
    if q.dtype in (torch.bfloat16, torch.float16):
        return _packed_forward(q, cache, start, scale)
    return reference.forward(q, cache, start, scale)


def backward(
    grad_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, cache: LayerCache, start: int, scale: float
) -> Tensor:
    """Adds dK and dV to the cache's gradient buffers; returns dq (B, H, S, D)."""
    if q.device.type == "cpu":
        keys, values, mask = _dense(q, cache, start)
        grad_q: Tensor
        grad_q, *grads = _cpu_backward(grad_out, q, keys, values, out, lse, 0.0, scale=scale, **mask)
        cache.accumulate(*grads)
        return grad_q
    if q.dtype in (torch.bfloat16, torch.float16):
        return _packed_backward(grad_out, q, out, lse, cache, start, scale)
    return reference.backward(grad_out, q, out, lse, cache, start, scale)


def _dense(q: Tensor, cache: LayerCache, start: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Keys and values up to the segment's end, and what may be seen of them, as PyTorch's CPU kernel takes it."""
    length, dtype = q.shape[2], torch.promote_types(q.dtype, torch.float32)
    end = start + length
    if start == 0 and cache.mask.window is None:  # the kernel skips half of the work
        bias = cache.mask.bias(dtype)[:, None, None, :end].expand(-1, 1, length, -1)
        mask = {"is_causal": True, "attn_mask": bias}
    else:
        mask = {"is_causal": False, "attn_mask": cache.mask.segment_bias(start, end, dtype)}
    return cache.keys[:, :, :end], cache.values[:, :, :end], mask


class _Rows(NamedTuple):
    """Where packed rows begin and end, in the order in which flash kernels take it."""

    query_offsets: Tensor  # (B + 1,)
    key_offsets: Tensor  # likewise
    longest_query: int
    longest_key: int


def _pack(x: Tensor, index: Tensor) -> Tensor:
    """(B, H, S, D) -> (N, H, D): the columns that an index of `KeyMask.packed` names."""
    return x.transpose(1, 2).flatten(0, 1)[index]


def _unpack(packed: Tensor, index: Tensor, batch: int, length: int, dtype: torch.dtype) -> Tensor:
    """(N, H, D) -> (B, H, S, D), 0 at all other columns."""
    flat = packed.new_zeros(batch * length, *packed.shape[1:], dtype=dtype)
    flat[index] = packed.to(dtype)
    rows: Tensor = flat.unflatten(0, (batch, length))
    return rows.transpose(1, 2)


def _packed_forward(q: Tensor, cache: LayerCache, start: int, scale: float) -> tuple[Tensor, Tensor]:
    batch, _, length, _ = q.shape
    end = start + length
    queries_at, query_offsets = cache.mask.packed(start, end)
    keys_at, key_offsets = cache.mask.packed(0, end)
    keys, values = (_pack(x[:, :, :end], keys_at) for x in (cache.keys, cache.values))
    run, _ = _packed_kernels()
    out, lse = run(_pack(q, queries_at), keys, values, _Rows(query_offsets, key_offsets, length, end), scale)
    return _unpack(out, queries_at, batch, length, q.dtype), lse


def _packed_backward(
    grad_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, cache: LayerCache, start: int, scale: float
) -> Tensor:
    batch, _, length, _ = q.shape
    end = start + length
    queries_at, query_offsets = cache.mask.packed(start, end)
    keys_at, key_offsets = cache.mask.packed(0, end)
    keys, values = (_pack(x[:, :, :end], keys_at) for x in (cache.keys, cache.values))
    grad_out, q, out = (_pack(x, queries_at) for x in (grad_out, q, out))
    _, run = _packed_kernels()
    rows = _Rows(query_offsets, key_offsets, length, end)
    grad_q, *grads = run(grad_out, q, keys, values, out, lse, rows, scale)
    wide = torch.promote_types(q.dtype, torch.float32)
    cache.accumulate(*(_unpack(grad, keys_at, batch, end, wide) for grad in grads))
    return _unpack(grad_q, queries_at, batch, length, q.dtype)


@functools.cache
def _packed_kernels() -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Sequence[Tensor]]]:
    """Forward and backward over packed rows; causal from the end of each row, as a segment at its end needs it."""
    try:
        from flash_attn import flash_attn_interface as library
    except ImportError:
        return _pytorch_forward, _pytorch_backward

    def run_forward(q: Tensor, k: Tensor, v: Tensor, rows: _Rows, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = library._flash_attn_varlen_forward(
            q, k, v, *rows, dropout_p=0.0, softmax_scale=scale, causal=True
        )
        return out, lse

    def run_backward(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rows: _Rows, scale: float
    ) -> list[Tensor]:
        grads = [torch.empty_like(x) for x in (q, k, v)]
        library._flash_attn_varlen_backward(
            grad_out,
            *(q, k, v, out, lse, *grads, *rows),
            dropout_p=0.0,
            softmax_scale=scale,
            causal=True,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return grads

    return run_forward, run_backward


def _pytorch_forward(q: Tensor, k: Tensor, v: Tensor, rows: _Rows, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *rows, 0.0, True, False, scale=scale)
    return out, lse


def _pytorch_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rows: _Rows, scale: float
) -> Sequence[Tensor]:
    no_dropout = torch.empty(2, dtype=torch.uint64, device=q.device)  # its random state, never read
    grads: Sequence[Tensor] = torch.ops.aten._flash_attention_backward(
        grad_out, q, k, v, out, lse, *rows, 0.0, True, no_dropout, no_dropout, scale=scale
    )
    return grads
