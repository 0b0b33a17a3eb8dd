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

from multicoco_kernels.cache import LayerCache


def _group(x: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """[B, H, S, ...] -> [B, H_kv, G * S, ...]: the query heads that share a key/value head, one after another."""
    return x.to(dtype).reshape(x.shape[0], kv_heads, -1, *x.shape[3:])


def _masked_scores(queries: Tensor, cache: LayerCache, start: int, end: int, scale: float) -> Tensor:
    """[B, H_kv, G * S, D] -> [B, H_kv, G * S, end], minus infinity where a key must not be seen."""
    scores = scale * queries @ cache.keys[:, :, :end].to(queries.dtype).mT
    if cache.cap is not None:
        scores.div_(cache.cap).tanh_().mul_(cache.cap)
    by_column: Tensor = scores.unflatten(2, (-1, end - start))
    return by_column.masked_fill_(~cache.mask.visible(start, end)[:, None], -torch.inf).flatten(2, 3)


def forward(q: Tensor, cache: LayerCache, start: int, scale: float) -> tuple[Tensor, Tensor]:
    """q (B, H, S, D) -> out (B, H, S, D), and lse (B, H, S): infinite for a query that sees no key."""
    end = start + q.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = _masked_scores(_group(q, cache.keys.shape[1], dtype), cache, start, end, scale)
    lse = scores.logsumexp(-1, keepdim=True)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # its probabilities, and so its output, are 0
    out = (scores - lse).exp() @ cache.values[:, :, :end].to(dtype)
    return out.to(q.dtype).view_as(q), lse.view(q.shape[:3])


def backward(
    grad_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, cache: LayerCache, start: int, scale: float
) -> Tensor:
    """Adds dK and dV to the cache's gradient buffers; returns dq (B, H, S, D)."""
    end = start + q.shape[2]
    queries, out, grad_out, lse = (_group(x, cache.keys.shape[1], lse.dtype) for x in (q, out, grad_out, lse))
    scores = _masked_scores(queries, cache, start, end, scale)
    probs = (scores - lse[..., None]).exp()
    values = cache.values[:, :, :end].to(lse.dtype)
    grad_scores = probs * (grad_out @ values.mT - (grad_out * out).sum(-1, keepdim=True)) * scale
    if cache.cap is not None:
        capped = scores.clamp_(min=-cache.cap)  # what is masked has a gradient of 0, times whatever is finite
        grad_scores *= 1 - (capped / cache.cap) ** 2
    cache.accumulate(grad_scores.mT @ queries, probs.mT @ grad_out)
    grad_queries = grad_scores @ cache.keys[:, :, :end].to(lse.dtype)
    return grad_queries.to(q.dtype).view_as(q)
