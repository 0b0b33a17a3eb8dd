"""Differentiable attention over a static key/value cache: one operator, several implementations.

Knows nothing of MultiCoCo: usable wherever a sequence is computed segment by segment and trained through.
"""

import torch
from torch import Tensor

from multicoco_kernels import reference
from multicoco_kernels.cache import LayerCache

__all__ = ["KERNELS", "LayerCache", "cached_attention", "first_handle"]

_IMPLEMENTATIONS = {"reference": reference.cached_attention}
_IMPLEMENTATIONS["auto"] = _IMPLEMENTATIONS["reference"]
KERNELS = tuple(_IMPLEMENTATIONS)


def first_handle(device: torch.device) -> Tensor:
    """The handle for a layer's first segment: a scalar that starts the chain through all of its segments."""
    return torch.zeros((), device=device, requires_grad=True)


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    handle: Tensor,
    cache: LayerCache,
    start: int,
    scale: float,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Writes a segment's keys and values into the cache and attends from it to everything up to its end.

    Causal, with padded keys (`cache.key_mask`) left out; softmax in at least fp32. A query that sees no key
    gets 0. Backward may run once, in the reverse order of the segments, which the handles enforce.

    Args:
        q: (B, H, S, D), H a multiple of H_kv.
        k, v: (B, H_kv, S, D), this segment's.
        handle: scalar, `first_handle` or what the call for the segment before, on this cache, returned.
        cache: the layer's buffers, of length L >= start + S, filled up to start.
        start: the segment's first column.
        scale: factor on q k^T, usually D ** -0.5.
        kernel: which implementation, one of KERNELS.

    Returns:
        out: (B, H, S, D), and the handle for the next segment.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other or the cache.
        RuntimeError: on a second backward.
    """
    length, capacity = q.shape[2], cache.keys.shape[2]
    if start < 0 or start + length > capacity:
        raise ValueError(f"segment [{start}, {start + length}) does not fit a cache of {capacity} columns")
    expected = (cache.keys.shape[0], cache.keys.shape[1], length, cache.keys.shape[3])
    if k.shape != expected or v.shape != expected:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} must both be {expected} for this cache")
    if (q.shape[0], q.shape[3]) != (expected[0], expected[3]) or q.shape[1] % expected[1]:
        raise ValueError(
            f"q {tuple(q.shape)} does not fit keys {expected}: same batch and head size, H a multiple of H_kv"
        )
    kinds = {(x.dtype, x.device) for x in (q, k, v, cache.keys)}
    if len(kinds) > 1:
        raise ValueError(f"q, k, v and the cache must share one dtype and device, got {sorted(map(str, kinds))}")
    return _IMPLEMENTATIONS[kernel](q, k, v, handle, cache, start, scale)
