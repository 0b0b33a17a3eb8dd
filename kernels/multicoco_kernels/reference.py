"""Attention over a static cache in plain PyTorch: the definition that faster kernels must match.

Forward, for a segment of S columns at [start, end), with K, V the cache's columns [0, end):

    s = scale * q K^T, masked to valid keys at or before the query;  lse = log sum exp s;  out = exp(s - lse) V

Backward, with p = exp(s - lse) computed again:

    ds = p * (dout V^T - sum(dout * out));  dq = scale * ds K;  dK += scale * ds^T q;  dV += p^T dout

With a cap, s = cap * tanh(scale * q K^T / cap) before the mask, and ds takes the factor 1 - (s / cap)^2.

Grouped-query heads share K and V without repeating them. In at least fp32, whatever the inputs are.
"""

import torch
from torch import Tensor

from multicoco_kernels.cache import LayerCache, Reach


def forward(q: Tensor, cache: LayerCache, start: int, scale: float) -> tuple[Tensor, Tensor]:
    """q (B, H, S, D) -> out (B, H, S, D), and lse (B, H, S): infinite for a query that sees no key."""
    end = start + q.shape[2]
    keys, values = cache.keys[:, :, :end], cache.values[:, :, :end]
    return _forward(q, keys, values, cache.mask.visible(start, end), scale, cache.cap)


def backward(
    grad_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, cache: LayerCache, start: int, scale: float
) -> Tensor:
    """Adds dK and dV to the cache's gradient buffers; returns dq (B, H, S, D)."""
    end = start + q.shape[2]
    keys, values = cache.keys[:, :, :end], cache.values[:, :, :end]
    visible = cache.mask.visible(start, end)
    grad_q, *gradients = _backward(grad_out, q, out, lse, keys, values, visible, scale, cache.cap)
    cache.accumulate(*gradients)
    return grad_q


def attend(q: Tensor, reach: Reach, scale: float) -> tuple[Tensor, Tensor]:
    """As `forward`, with all that says where the segment stands on the device."""
    return _forward(q, *_reached(q, reach), scale, None)


def differentiate(
    grad_out: Tensor,
    q: Tensor,
    out: Tensor,
    lse: Tensor,
    reach: Reach,
    scale: float,
    gradients: tuple[Tensor, Tensor],
) -> Tensor:
    """As `backward`, which adds to these buffers."""
    grad_q, *found = _backward(grad_out, q, out, lse, *_reached(q, reach), scale, None)
    for buffer, gradient in zip(gradients, found, strict=True):
        buffer.add_(gradient)
    return grad_q


def _reached(q: Tensor, reach: Reach) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (B, H_kv, L, D), 0 where nothing has been written yet, and which of them each query sees, as of
    `KeyMask.visible`."""
    columns = torch.arange(reach.keys.shape[2], device=q.device)
    own = reach.start + torch.arange(q.shape[2], device=q.device)
    keys, values = (x.masked_fill((columns > own[-1])[:, None], 0) for x in (reach.keys, reach.values))
    return keys, values, (reach.bias == 0)[:, None, None] & (columns <= own[:, None])


def _group(x: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """[B, H, S, ...] -> [B, H_kv, G * S, ...]: the query heads that share a key/value head, one after another."""
    return x.to(dtype).reshape(x.shape[0], kv_heads, -1, *x.shape[3:])


def _masked_scores(queries: Tensor, keys: Tensor, visible: Tensor, scale: float, cap: float | None) -> Tensor:
    """[B, H_kv, G * S, D] -> [B, H_kv, G * S, N], minus infinity where a key must not be seen."""
    scores = scale * queries @ keys.to(queries.dtype).mT
    if cap is not None:
        scores.div_(cap).tanh_().mul_(cap)
    by_column: Tensor = scores.unflatten(2, (-1, visible.shape[2]))
    return by_column.masked_fill_(~visible[:, None], -torch.inf).flatten(2, 3)


def _forward(
    q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = _masked_scores(_group(q, keys.shape[1], dtype), keys, visible, scale, cap)
    lse = scores.logsumexp(-1, keepdim=True)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # its probabilities, and so its output, are 0
    out = (scores - lse).exp() @ values.to(dtype)
    return out.to(q.dtype).view_as(q), lse.view(q.shape[:3])


def _backward(
    grad_out: Tensor,
    q: Tensor,
    out: Tensor,
    lse: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor,
    scale: float,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (B, H, S, D), and dK and dV (B, H_kv, N, D)."""
    queries, out, grad_out, lse = (_group(x, keys.shape[1], lse.dtype) for x in (q, out, grad_out, lse))
    scores = _masked_scores(queries, keys, visible, scale, cap)
    probs = (scores - lse[..., None]).exp()
    grad_scores = probs * (grad_out @ values.to(lse.dtype).mT - (grad_out * out).sum(-1, keepdim=True)) * scale
    if cap is not None:
        capped = scores.clamp_(min=-cap)  # what is masked has a gradient of 0, times whatever is finite
        grad_scores *= 1 - (capped / cap) ** 2
    grad_queries = (grad_scores @ keys.to(lse.dtype)).to(q.dtype).view_as(q)
    return grad_queries, grad_scores.mT @ queries, probs.mT @ grad_out
