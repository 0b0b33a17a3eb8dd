"""Ends a run on all hosts, within a bounded time, when one of its ranks is gone: killed, or its host unreachable.

Collectives alone do not: one that waits for a host whose network is down waits for the process group's timeout, half an
hour by default, and what is then raised names an address at best.
"""

import contextlib
import os
import socket
import sys
import threading
import uuid
from datetime import timedelta
from time import monotonic, sleep

import torch.distributed as dist

BEAT_SECONDS = 1.0
PATIENCE_AFTER_ERROR = 3.0  # a collective has failed already: whoever is silent for so long is the reason


class Watchdog:
    """Every rank signals that it is alive through the key-value store of the process group's rank 0, which watches all.

    Both run in threads beside the training and need nothing of it: they also run while it computes, loads or saves.

    Args:
        limit_seconds: how long a rank may be silent.
    """

    def __init__(self, limit_seconds: float):
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._limit = limit_seconds
        self._stopped = threading.Event()
        self._said = [b""] * self._world_size  # the newest beat of each rank
        self._heard = [monotonic()] * self._world_size  # and when it came; beyond rank 0, of rank 0 alone
        if self._world_size == 1:
            return
        name = [uuid.uuid4().hex]  # the store may have served an earlier attempt
        dist.broadcast_object_list(name)
        master = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=limit_seconds),
        )
        self._store = dist.PrefixStore(name[0], master)
        self._store.set(f"host/{self._rank}", socket.gethostname())
        # rank 0 names any, others rank 0 alone: of n ranks, 2n questions to its store and not n squared
        named = range(self._world_size) if self._rank == 0 else range(1)
        self._hosts = [host.decode() for host in self._store.multi_get([f"host/{rank}" for rank in named])]
        self._heard = [monotonic()] * self._world_size
        for loop in (self._exchange, self._judge):
            threading.Thread(target=loop, daemon=True).start()

    def stop(self) -> None:
        """When all ranks are done; collective."""
        dist.barrier()
        self._stopped.set()

    def explain(self, error: RuntimeError) -> None:
        """After an exception that a lost rank may have caused: ends the process if it has, else returns."""
        text = str(error).lower()
        of_communication = isinstance(error, dist.DistError) or "gloo" in text or "connection" in text
        if self._world_size == 1 or not of_communication:
            return
        self._limit = min(self._limit, PATIENCE_AFTER_ERROR)
        with contextlib.suppress(RuntimeError):  # that one means that rank 0 is gone
            self._store.set("trouble", "1")
        sleep(self._limit + 3 * BEAT_SECONDS)  # the judge ends the process meanwhile

    def _exchange(self) -> None:
        """Says that this rank is alive, and hears of the others; may block for good where the network is down."""
        beat = 0
        while not self._stopped.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._store.set(f"beat/{self._rank}", str(beat))
                if self._store.check(["lost"]):
                    os._exit(1)  # rank 0 has said why
                if self._store.check(["trouble"]):
                    self._limit = min(self._limit, PATIENCE_AFTER_ERROR)
                self._heard[0] = monotonic()
                if self._rank == 0:
                    self._hear_the_others()
            except RuntimeError:
                continue  # the judge sees that nothing is heard any more

    def _hear_the_others(self) -> None:
        started = [rank for rank in range(1, self._world_size) if self._store.check([f"beat/{rank}"])]
        for rank, beat in zip(started, self._store.multi_get([f"beat/{rank}" for rank in started]), strict=True):
            if beat != self._said[rank]:
                self._said[rank], self._heard[rank] = beat, monotonic()

    def _judge(self) -> None:
        """Ends this process when a rank has been silent too long; rank 0, or the first of each host, says which."""
        while not self._stopped.wait(BEAT_SECONDS):
            watched = range(self._world_size) if self._rank == 0 else [0]
            lost = [rank for rank in watched if monotonic() - self._heard[rank] > self._limit]
            if not lost:
                continue
            if self._rank == 0 or os.environ["LOCAL_RANK"] == "0":
                names = ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in lost)
                print(
                    f"error: {names} has not been heard of for {self._limit:.0f} s: the process was killed, or its "
                    "host or network is down. The run ends on all hosts; the same command goes on from its last "
                    "checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
            if self._rank == 0:
                self._store.set("lost", "1")
                sleep(3 * BEAT_SECONDS)  # for the others to see it: the store ends with this process
            os._exit(1)
