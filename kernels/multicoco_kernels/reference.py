"""Append-and-attend over a static cache in plain PyTorch: the definition that faster kernels must match.

Forward, for a segment of S columns at [start, end), with K, V the cache's columns [0, end):

    s = scale * q K^T, masked to valid keys at or before the query;  lse = log sum exp s;  out = exp(s - lse) V

Backward, with p = exp(s - lse) computed again:

    ds = p * (dout V^T - sum(dout * out));  dq = scale * ds K;  dK += scale * ds^T q;  dV += p^T dout

dK and dV are added to the cache's buffers for [0, end). Later segments have run their backward by then (the
handle chain orders them), so the slice [start, end) is complete and is returned as this segment's dk, dv.
Saved for backward: q, out and lse, never K or V. Grouped-query heads share K and V without repeating them.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multicoco_kernels.cache import LayerCache


def _group(x: Tensor, kv_heads: int) -> Tensor:
    """[B, H, S, D] -> [B, H_kv, G * S, D]: the query heads that share a key/value head, one after another."""
    batch, _, _, head_dim = x.shape
    return x.reshape(batch, kv_heads, -1, head_dim)


def _masked_scores(queries: Tensor, cache: LayerCache, start: int, end: int, scale: float) -> Tensor:
    """[B, H_kv, G * S, D] -> [B, H_kv, G * S, end], minus infinity where a key must not be seen."""
    scores = scale * queries @ cache.keys[:, :, :end].to(queries.dtype).mT
    length = end - start
    visible = cache.key_mask[:, None, None, None, :end]
    if length > 1:  # a single column sees everything before it and itself
        columns = torch.arange(end, device=queries.device)
        visible = visible & (columns <= columns[start:, None])
    by_column = scores.unflatten(2, (-1, length))
    return by_column.masked_fill_(~visible, -torch.inf).flatten(2, 3)


class _CachedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, handle, cache, start, scale):
        end = start + q.shape[2]
        cache.write(start, k, v)
        accumulate_dtype = torch.promote_types(q.dtype, torch.float32)
        queries = _group(q, k.shape[1]).to(accumulate_dtype)
        scores = _masked_scores(queries, cache, start, end, scale)
        lse = scores.logsumexp(-1, keepdim=True)
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # a padded query sees nothing: its output is 0
        out = (scores - lse).exp() @ cache.values[:, :, :end].to(accumulate_dtype)
        out = out.to(q.dtype).view_as(q)
        ctx.save_for_backward(q, out, lse)
        ctx.cache, ctx.start, ctx.scale, ctx.spent = cache, start, scale, False
        return out, handle.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_handle):
        if ctx.spent:
            raise RuntimeError(
                "cached_attention ran backward a second time: the gradients in its cache are already used; "
                "run the forward again instead of retain_graph=True"
            )
        ctx.spent = True
        q, out, lse = ctx.saved_tensors
        cache, start, scale = ctx.cache, ctx.start, ctx.scale
        end, kv_heads = start + q.shape[2], cache.keys.shape[1]
        queries, out, grad_out = (_group(x, kv_heads).to(lse.dtype) for x in (q, out, grad_out))

        probs = (_masked_scores(queries, cache, start, end, scale) - lse).exp()
        values = cache.values[:, :, :end].to(lse.dtype)
        grad_scores = probs * (grad_out @ values.mT - (grad_out * out).sum(-1, keepdim=True)) * scale
        grad_queries = grad_scores @ cache.keys[:, :, :end].to(lse.dtype)
        cache.accumulate(grad_scores.mT @ queries, probs.mT @ grad_out)
        grad_k = cache.grad_keys[:, :, start:end].to(q.dtype)
        grad_v = cache.grad_values[:, :, start:end].to(q.dtype)
        return grad_queries.to(q.dtype).view_as(q), grad_k, grad_v, grad_handle, None, None, None


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, handle: Tensor, cache: LayerCache, start: int, scale: float
) -> tuple[Tensor, Tensor]:
    """See `multicoco_kernels.cached_attention`."""
    return _CachedAttention.apply(q, k, v, handle, cache, start, scale)
