"""Where what is latent and what is labelled stands in a batch, read on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multicoco_kernels import send


def places(mask: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Where a mask is true: of each of its axes, (N,) on the device. Waits for it only if the mask is there itself."""
    return tuple(send(along, device) for along in mask.nonzero(as_tuple=True))


@dataclass(frozen=True)
class LatentColumns:
    """Where the thoughts of a batch (B, T) stand.

    Attributes:
        is_latent: (B, T) bool, on the device.
        k: (B, T), which of its row's thoughts stands there, from 0; -1 where none does.
        known: is_latent on the host, where it is there.
        columns: those in which any row has one.
        hidden_from: by column that follows some row's last one, (B, T) bool of the thoughts of such rows so far; empty
            unless they are to be hidden.
    """

    is_latent: Tensor
    k: Tensor
    known: Tensor
    columns: list[int]
    hidden_from: dict[int, Tensor]

    @classmethod
    def find(
        cls,
        tokens: Mapping[str, Tensor],
        latent_token_id: int | None,
        hides: bool,
        on_host: Mapping[str, Tensor] | None,
    ) -> LatentColumns:
        """The tokens that are no padding and have the id.

        Args:
            tokens: `input_ids` and `attention_mask`, (B, T), on the device.
            on_host: the same on the host; without it, this is the one time that passes wait for the device.

        Raises:
            ValueError: a latent token has none before it, or one that is to be hidden none behind it.
        """
        is_latent = _is_latent(**tokens, latent_token_id=latent_token_id)
        known, attention_mask = is_latent, tokens["attention_mask"]
        if on_host:
            attention_mask = on_host["attention_mask"]
            known = _is_latent(on_host["input_ids"], attention_mask, latent_token_id)
        follows_nothing = known.clone()
        follows_nothing[:, 1:] &= ~attention_mask[:, :-1].bool()
        flags = torch.stack([x.any(0) for x in (known, follows_nothing, _is_last(known) & hides)]).tolist()
        columns, orphaned, last = ([column for column, flag in enumerate(row) if flag] for row in flags)
        if orphaned:
            raise ValueError(f"latent token in column {orphaned[0]} has no token before it to take its embedding from")
        if known.shape[1] - 1 in last:
            raise ValueError("a thought in the last column cannot be hidden: nothing follows it")
        ends = _is_last(is_latent)
        hidden_from = {c + 1: is_latent & ends[:, : c + 1].any(-1, keepdim=True) for c in last}
        return cls(is_latent, _numbers(is_latent), known, columns, hidden_from)

    def places(self) -> tuple[Tensor, ...]:
        """Rows and columns, (N,) each, on the device."""
        return places(self.known, self.is_latent.device)


def _is_latent(input_ids: Tensor, attention_mask: Tensor, latent_token_id: int | None) -> Tensor:
    if latent_token_id is None:
        return torch.zeros_like(input_ids, dtype=torch.bool)
    return (input_ids == latent_token_id) & attention_mask.bool()


def _numbers(is_latent: Tensor) -> Tensor:
    return (is_latent.long().cumsum(-1) - 1).masked_fill(~is_latent, -1)


def _is_last(is_latent: Tensor) -> Tensor:
    k = _numbers(is_latent)
    return is_latent & (k == k.amax(-1, keepdim=True))
