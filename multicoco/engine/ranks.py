"""What the ranks tell each other in Python objects; without a process group, a process is alone."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from multicoco.errors import UserError

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """Every rank's value, in their order. Collective."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def agree(function: Callable[[], T], only_rank_0: bool = False) -> T:
    """Calls a function on every rank, or on rank 0 for all of them; a UserError of any rank is raised on every one.

    So no rank waits for another that has given up, and the message can be printed once.
    """
    result, own_error = None, None
    if rank() == 0 or not only_rank_0:
        try:
            result = function()
        except UserError as caught:
            own_error = caught
    for error in filter(None, gather(own_error)):
        error.on_all_ranks = True
        raise error
    return gather(result)[0] if only_rank_0 else result
