"""The static key/value cache of a whole language model, and its way into transformers' attention layers.

A decoder whose attention implementation is ATTENTION_NAME runs as usual (SDPA) until it is called with a `segment`:
then each layer appends to its static cache and attends with `multicoco_kernels.cached_attention`. The segment
travels as a keyword argument, not as `past_key_values`, so activation checkpointing leaves it alone, and holds
only what a recompute may see again: explicit columns, and handles that are written once.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from multicoco.latent.kinds import attention_window
from multicoco.latent.products import autocast_dtype
from multicoco_kernels import BufferPool, KeyMask, LayerCache, cached_attention, first_handle, send

ATTENTION_NAME = "multicoco_cached"


class StaticKVCache:
    """One `LayerCache` per attention layer, allocated when the layer first runs.

    Args:
        key_mask: (B, L) bool, False at padding; L is how many columns there are.
        kernel: which implementation of `cached_attention`.
        pools: where each layer's buffers come from and go back to: it finds its own again with the next batch.
        on_host: `key_mask` on the CPU, where it is there.
    """

    def __init__(self, key_mask: Tensor, kernel: str, pools: MutableMapping[int, BufferPool], on_host: Tensor | None):
        self.valid = key_mask
        self.on_host = on_host
        self.masks: dict[int | None, KeyMask] = {}  # by the window
        self.kernel = kernel
        self.pools = pools
        self.layers: dict[int, LayerCache] = {}

    @cached_property
    def longest_row(self) -> int:
        """Without padding; waits for the device if the mask is not on the host."""
        return int((self.valid if self.on_host is None else self.on_host).sum(-1).max())

    def layer(self, index: int, like: Tensor, window: int | None, cap: float | None) -> LayerCache:
        """Args: window: of the layer, see `kinds.attention_window`; cap: of its scores, see `LayerCache`."""
        if index not in self.layers:
            reaches_all = window is None or self.longest_row <= window
            self.layers[index] = LayerCache(like, self._mask(None if reaches_all else window), self.pools[index], cap)
        return self.layers[index]

    def _mask(self, window: int | None) -> KeyMask:
        if window not in self.masks:
            self.masks[window] = KeyMask(self.valid, window, self.on_host)
        return self.masks[window]

    def column(self, number: int) -> Tensor:
        """(1,) int64, on the device, without sending anything there."""
        return self._mask(None).columns[number : number + 1]

    def hide(self, columns: Tensor) -> None:
        """From here on, columns (B, L) are no keys any more; not for a backward, which would hide them everywhere.

        Args: columns: on the host, if `on_host` is there.
        """
        self.valid = self.valid & ~send(columns, self.valid.device)
        self.on_host = None if self.on_host is None else self.on_host & ~columns
        self.masks = {}
        for layer in self.layers.values():
            layer.mask = self._mask(layer.mask.window)

    def to_dynamic(self, length: int) -> DynamicCache:
        """Columns [0, length) as the cache that transformers' `generate` goes on from."""
        return DynamicCache([(c.keys[:, :, :length], c.values[:, :, :length]) for _, c in sorted(self.layers.items())])


class Attends(Protocol):
    """What a decoder's layers attend with, instead of transformers' attention."""

    def attend(
        self, layer_index: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, cap: float | None
    ) -> Tensor:
        """q (B, H, S, D), k and v (B, H_kv, S, D) -> (B, H, S, D)."""
        ...


class Segment:
    """Columns [start, end) of the cache, run as one pass over the decoder.

    Args:
        previous: the segment before, None for the first.
    """

    def __init__(self, cache: StaticKVCache, start: int, previous: "Segment | None"):
        self.cache = cache
        self.start = start
        self.previous = previous
        self.handles: dict[int, Tensor] = {}

    def attend(
        self, layer_index: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, cap: float | None
    ) -> Tensor:
        """q (B, H, S, D), k and v (B, H_kv, S, D) -> (B, H, S, D)."""
        handle = self.previous.handles[layer_index] if self.previous else first_handle(q.device)
        layer = self.cache.layer(layer_index, like=k, window=window, cap=cap)
        out, handle = cached_attention(q, k, v, handle, layer, self.start, scale, self.cache.kernel)
        self.handles.setdefault(layer_index, handle)  # a recompute must not replace the graph's own handle
        return out


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    segment: Attends | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if segment is None:
        attend = sdpa_attention_forward if softcap is None else _capped_attention_forward
        return attend(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **kwargs)
    config = cast(PreTrainedConfig, module.config)
    if kwargs.get("s_aux") is not None:
        raise ValueError(f"latent passes do not reproduce s_aux of {config.model_type}")
    index = cast(int, module.layer_idx)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if dtype := autocast_dtype(query.device):  # which casts the inputs of PyTorch's own attention
        query, key, value = (x.to(dtype) for x in (query, key, value))
    out = segment.attend(index, query, key, value, scale, attention_window(config, index), softcap)
    return out.transpose(1, 2).contiguous(), None  # [B, S, H, D]


def _capped_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Where PyTorch's attention has no cap on scores, Gemma 2's own: with masks as `sdpa_mask` makes them, True at keys
    or, where they are merely causal, None."""
    if attention_mask is None:
        columns = torch.arange(key.shape[2], device=key.device)
        attention_mask = columns <= columns[-query.shape[2] :, None]
    least = torch.finfo(query.dtype if query.dtype.itemsize < 4 else torch.float32).min  # its softmax is in fp32
    added = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(~attention_mask, least)
    return eager_attention_forward(module, query, key, value, added, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _attention_forward)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


class RotaryTables:
    """In the place of a rotary embedding's forward: slices of tables that are made once, for (B, T) positions; of each
    kind of layer, where it tells them apart.

    Attributes:
        fixed: given instead, by kind, if there are any.
    """

    def __init__(self, own: Callable[..., tuple[Tensor, ...]], embeds: Tensor, position_ids: Tensor):
        self._own, self._embeds, self._positions = own, embeds, position_ids
        self._columns = slice(0)
        self._tables: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}  # by what else it is called with
        self.fixed: Mapping[tuple[Any, ...], tuple[Tensor, ...]] | None = None

    def __call__(self, x: Tensor, position_ids: Tensor, *kind: Any) -> tuple[Tensor, ...]:
        if self.fixed is not None:
            return self.fixed[kind]
        if kind not in self._tables:
            self._tables[kind] = self._own(self._embeds, self._positions, *kind)
        return tuple(table[:, self._columns] for table in self._tables[kind])

    def choose(self, start: int, end: int) -> None:
        """Before a pass, its columns."""
        self._columns = slice(start, end)

    def chosen(self) -> dict[tuple[Any, ...], tuple[Tensor, ...]]:
        """Of those columns, what is given for each kind that has been asked for."""
        return {kind: tuple(table[:, self._columns] for table in tables) for kind, tables in self._tables.items()}


@contextmanager
def rotary_tables(decoder: nn.Module, embeds: Tensor, position_ids: Tensor) -> Iterator[RotaryTables]:
    """Inside, they take the place of the forward of the decoder's rotary embedding; decoders without a `rotary_emb` are
    left as they are."""
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None:
        yield RotaryTables(lambda *_: (), embeds, position_ids)
        return
    tables = RotaryTables(rotary.forward, embeds, position_ids)
    original = rotary.__dict__.get("forward")  # an instance's own, if another library has put one there
    rotary.forward = tables
    try:
        yield tables
    finally:
        if original is None:
            del rotary.forward
        else:
            rotary.forward = original


def no_mask(inputs_embeds: Tensor) -> Tensor:
    """A ready-made 4-D mask that transformers passes through unread: the cache masks by itself.

    Of width 0, so that an attention which did read it, never having seen the segment, fails instead of going wrong.
    """
    return inputs_embeds.new_empty(1, 1, 1, 0, dtype=torch.bool)
