"""Where what is latent and what is labelled stands in a batch, read on the host."""

import torch
from torch import Tensor

from multicoco_kernels import send


def places(mask: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Where a mask is true: of each of its axes, (N,) on the device. Waits for it only if the mask is there itself."""
    return tuple(send(along, device) for along in mask.nonzero(as_tuple=True))


def order(is_latent: Tensor, hides: bool) -> tuple[Tensor, Tensor]:
    """(B, T) bool -> of each position, which thought of its row it is, -1 for none; and whether it is the row's last,
    where that one is to be hidden."""
    k = (is_latent.long().cumsum(-1) - 1).masked_fill(~is_latent, -1)
    return k, (k >= 0) & (k == k.amax(-1, keepdim=True)) & hides


def latent_columns(is_latent: Tensor, attention_mask: Tensor, is_last: Tensor) -> tuple[list[int], list[int]]:
    """The columns in which any row is latent, and those that follow one that is marked as the last.

    Args: (B, T) each. Of the host, it waits for nothing; of the device, this is the one time that passes do.

    Raises:
        ValueError: a latent token has none before it, or one that is to be hidden none behind it.
    """
    follows_nothing = is_latent.clone()
    follows_nothing[:, 1:] &= ~attention_mask[:, :-1].bool()
    latent, orphaned, last = torch.stack([x.any(0) for x in (is_latent, follows_nothing, is_last)]).tolist()
    if any(orphaned):
        raise ValueError(
            f"latent token in column {orphaned.index(True)} has no token before it to take its embedding from"
        )
    if last[-1]:
        raise ValueError("a thought in the last column cannot be hidden: nothing follows it")
    return [column for column, flag in enumerate(latent) if flag], [i + 1 for i, flag in enumerate(last) if flag]
