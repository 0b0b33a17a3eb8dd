"""Where in a batch thoughts stand: for the passes to be laid out, and for what is put there."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from multicoco_kernels import send


@dataclass(frozen=True)
class Places:
    """Of the thoughts of a batch (B, T).

    Attributes:
        is_latent: (B, T) bool, on the device.
        k: (B, T), which of its row's thoughts stands there, from 0; -1 where none does. On the device.
        columns: those in which any row has one.
        hidden_from: by column that follows some row's last one, (B, T) bool of the thoughts of such rows so far; empty
            unless they are to be hidden.
        found: `is_latent`, on the host if it was found there.
    """

    is_latent: Tensor
    k: Tensor
    columns: list[int]
    hidden_from: dict[int, Tensor]
    found: Tensor

    @cached_property
    def rows_and_columns(self) -> tuple[Tensor, ...]:
        """(N,) each, row by row, on the device; waits for it only if they were found there."""
        return coordinates(self.found, self.is_latent.device)

    def columns_of(self, n: int) -> Tensor:
        """(B, n): the columns of each row's first n thoughts, 0 where it has fewer. On the device, without waiting."""
        of_thoughts = torch.arange(n, device=self.k.device)
        return (self.k[:, None] == of_thoughts[:, None]).int().argmax(-1)


def find(
    input_ids: Tensor, attention_mask: Tensor, latent_token_id: int | None, hides: bool, device: torch.device
) -> Places:
    """Where tokens (B, T) that are no padding have the id. Of tokens on the host, nothing waits for the device.

    Raises:
        ValueError: one has no token before it or, if they are to be hidden, none after it.
    """
    is_latent = torch.zeros_like(input_ids, dtype=torch.bool)
    if latent_token_id is not None:
        is_latent = (input_ids == latent_token_id) & attention_mask.bool()
    k = (is_latent.long().cumsum(-1) - 1).masked_fill(~is_latent, -1)
    is_last = is_latent & (k == k.amax(-1, keepdim=True)) & hides
    follows_nothing = is_latent.clone()
    follows_nothing[:, 1:] &= ~attention_mask[:, :-1].bool()
    columns, orphaned, last = _columns_with_any(is_latent, follows_nothing, is_last)
    if orphaned:
        raise ValueError(f"latent token in column {orphaned[0]} has no token before it to take its embedding from")
    if input_ids.shape[1] - 1 in last:
        raise ValueError("a thought in the last column cannot be hidden: nothing follows it")
    ends = {column + 1: is_latent & is_last[:, : column + 1].any(-1, keepdim=True) for column in last}
    return Places(send(is_latent, device), send(k, device), columns, ends, is_latent)


def coordinates(mask: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Where a mask is true: of each of its axes, (N,) on the device. Waits for it only if the mask is there itself."""
    return tuple(send(along, device) for along in mask.nonzero(as_tuple=True))


def _columns_with_any(*flags: Tensor) -> list[list[int]]:
    """Of each (B, T): the columns in which any row is flagged. Of the device, the one time that passes wait for it."""
    by_column = torch.stack([x.any(0) for x in flags]).tolist()
    return [[column for column, flag in enumerate(row) if flag] for row in by_column]
