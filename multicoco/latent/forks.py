"""Rows that divide (`curriculum.Fork`): two ways on from the same first columns, which are run once.

The branch takes the trunk's place in the cache, column for column, from the fork on. So both see the shared columns and
themselves, at the positions and the distances that they would have in rows of their own; and the backward of a segment
that writes over others puts back what stood there (`multicoco_kernels`), so gradients of both reach the shared columns.
The branch is run last: autograd, which goes back in the reverse order, is through with it before any layer of the trunk
is run again for its backward. The cache would refuse that otherwise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from multicoco.curriculum import Fork
from multicoco.models.families import Family


def ways(x: Tensor, fork: Fork) -> tuple[Tensor, Tensor]:
    """(B, T, ...) -> of the trunk, up to where the branches begin, and of these from the last shared column on."""
    return x[:, : fork.branch], torch.cat([x[:, fork.column - 1 : fork.column], x[:, fork.branch :]], dim=1)


def positions(
    family: Family, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Tensor], fork: Fork | None
) -> Tensor:
    """The family's, (B, T) or with further axes in front; a branch, which holds no image, counts on from the fork."""
    if fork is None:
        return family.position_ids(input_ids, attention_mask, inputs)
    trunk = family.position_ids(input_ids[:, : fork.branch], attention_mask[:, : fork.branch], inputs)
    along = torch.arange(input_ids.shape[1] - fork.branch, device=trunk.device)
    return torch.cat([trunk, trunk[..., fork.column, None] + along], dim=-1)


def key_columns(mask: Tensor, fork: Fork | None) -> Tensor:
    """(B, T) bool, False at padding -> the same of the cache's columns.

    Where one way is longer than the other in a row, a column is padding for one of them. It may be a key for both: it
    is behind all that the shorter one has.
    """
    if fork is None:
        return mask
    trunk, branch = mask[:, fork.column : fork.branch], mask[:, fork.branch :]
    either = branch | F.pad(trunk, (0, branch.shape[1] - trunk.shape[1]))
    return torch.cat([mask[:, : fork.column], either], dim=1)
