"""The static key/value buffers of one attention layer, and the gradients that gather beside them."""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer for a whole sequence, written in place segment by segment.

    Attributes:
        keys, values: (B, H_kv, L, D), in the model's dtype.
        key_mask: (B, L) bool, False at padding. Shared by all layers.
        grad_keys, grad_values: (B, H_kv, L, D), at least fp32; allocated by the first backward.
    """

    def __init__(self, like: Tensor, key_mask: Tensor):
        """Args: like: (B, H_kv, *, D), any segment's keys: gives heads, head size, dtype and device."""
        batch, heads, _, head_dim = like.shape
        self.key_mask = key_mask
        self.keys = like.new_empty(batch, heads, key_mask.shape[1], head_dim)
        self.values = torch.empty_like(self.keys)
        self.grad_keys: Tensor | None = None
        self.grad_values: Tensor | None = None

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Puts a segment's (B, H_kv, S, D) at columns [start, start + S); the same again on a recompute."""
        self.keys[:, :, start : start + keys.shape[2]] = keys
        self.values[:, :, start : start + values.shape[2]] = values

    def accumulate(self, grad_keys: Tensor, grad_values: Tensor) -> None:
        """Adds one segment's gradients with respect to columns [0, end), (B, H_kv, end, D) each."""
        if self.grad_keys is None:
            self.grad_keys = torch.zeros_like(self.keys, dtype=grad_keys.dtype)
            self.grad_values = torch.zeros_like(self.grad_keys)
        end = grad_keys.shape[2]
        self.grad_keys[:, :, :end] += grad_keys
        self.grad_values[:, :, :end] += grad_values
