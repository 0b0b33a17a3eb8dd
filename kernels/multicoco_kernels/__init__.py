"""Differentiable attention over a static key/value cache: one operator, several implementations.

Knows nothing of MultiCoCo: usable wherever a sequence is computed segment by segment and trained through.
"""

from multicoco_kernels.cache import BufferPool, KeyMask, LayerCache
from multicoco_kernels.operator import KERNELS, cached_attention, first_handle, implementation

__all__ = ["KERNELS", "BufferPool", "KeyMask", "LayerCache", "cached_attention", "first_handle", "implementation"]
