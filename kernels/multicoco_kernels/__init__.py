"""Differentiable attention over a static key/value cache: one operator, several implementations.

Knows nothing of MultiCoCo: usable wherever a sequence is computed segment by segment and trained through. For one
layer, with a first segment of 5 columns and then single ones:

>>> import torch
>>> B, H, H_KV, L, D = 2, 4, 2, 8, 16
>>> q, k, v = (torch.randn(B, heads, L, D, requires_grad=True) for heads in (H, H_KV, H_KV))
>>> valid = torch.ones(B, L, dtype=torch.bool)  # False at padding
>>> cache, handle, outs = LayerCache(k, KeyMask(valid), BufferPool()), first_handle(q.device), []
>>> for start, end in ((0, 5), (5, 6), (6, 7), (7, 8)):
...     segment = (x[:, :, start:end] for x in (q, k, v))
...     out, handle = cached_attention(*segment, handle, cache, start, scale=D**-0.5)
...     outs.append(out)
>>> torch.cat(outs, dim=2).sum().backward()
>>> k.grad.shape
torch.Size([2, 2, 8, 16])
"""

from multicoco_kernels.cache import BufferPool, KeyMask, LayerCache, Reach, coordinates, send
from multicoco_kernels.column import Column, column_attention, reads_on_device
from multicoco_kernels.operator import KERNELS, cached_attention, first_handle, implementation, pass_on

__all__ = [
    "KERNELS",
    "BufferPool",
    "Column",
    "KeyMask",
    "LayerCache",
    "Reach",
    "cached_attention",
    "column_attention",
    "coordinates",
    "first_handle",
    "implementation",
    "pass_on",
    "reads_on_device",
    "send",
]
