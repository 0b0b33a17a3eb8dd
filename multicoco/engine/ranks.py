"""What the ranks tell each other in Python objects; without a process group, a process is alone."""

import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from typing import TypeVar, cast

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from multicoco.errors import UserError
from multicoco.process import say_before_meeting

SPEAK_SECONDS = 30.0  # for the rank that is to say something
STAY_SECONDS = 5.0  # of rank 0, without which nobody can hear any more
T = TypeVar("T")
A = TypeVar("A", bound=np.generic)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def own_places(n: int) -> NDArray[np.int64]:
    """This rank's share of n places, which ranks have in turn."""
    return np.arange(rank(), n, world_size())


def in_turn(shares: Sequence[NDArray[A]]) -> NDArray[A]:
    """What every rank has found at its `own_places`, at all of them."""
    together = np.empty(sum(map(len, shares)), shares[0].dtype)
    for first, share in enumerate(shares):
        together[first :: len(shares)] = share
    return together


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
    return cast(T, _told_by_rank_0(result) if only_rank_0 else result)


def _told_by_rank_0(value: T) -> T:
    told = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(told)
    return told[0]


def tell(text: str, on_all_ranks: bool = True) -> None:
    """Says, once, why the run ends. Every rank that has this text calls it, and none comes back before it is out.

    Launchers end all ranks when one has ended badly, rank 0 too. So it is not left to rank 0: the first one to come
    says it, and the others wait until it has, for a bounded time. Where rank 0 is gone, each says it.

    Args:
        on_all_ranks: whether it is known that all have it; otherwise the rank that says it is named.
    """
    if not dist.is_initialized():
        say_before_meeting(text)
        return
    key, is_said = sha256(text.encode()).hexdigest(), False
    if not on_all_ranks and world_size() > 1:
        text += f" (rank {rank()} on {socket.gethostname()})"
    with suppress(RuntimeError):  # rank 0, which keeps the store, is gone, or who was to say it has not
        store = dist.distributed_c10d._get_default_store()
        if store.add(f"{key}/came", 1) > 1:
            store.wait([f"{key}/said"], timedelta(seconds=SPEAK_SECONDS))
        else:
            print(text, file=sys.stderr, flush=True)
            store.set(f"{key}/said", "")
        is_said = True
        if store.add(f"{key}/heard", 1) == world_size():
            store.set(f"{key}/heard by all", "")
        if rank() == 0:
            store.wait([f"{key}/heard by all"], timedelta(seconds=STAY_SECONDS))
    if not is_said:
        print(text, file=sys.stderr, flush=True)
