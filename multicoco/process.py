"""A process of a run by itself: what it says before the ranks have met, and its end."""

import atexit
import os
import socket
import sys
from contextlib import suppress
from time import monotonic, sleep
from typing import NoReturn

LINGER_SECONDS = 30.0


def environment_rank() -> int:
    """This process among those of its launcher: `deepspeed`, `torchrun` or `mpirun`."""
    return int(os.environ.get("RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or 0)


def say_before_meeting(text: str) -> None:
    """Says why this process will end, while the ranks cannot talk to each other yet: rank 0 does so at once.

    Launchers end all ranks when one has ended badly. So the others, which as a rule have the same to say, stay until
    rank 0's end has ended them, LINGER_SECONDS at most; they say it if rank 0 goes on, as when a file is missing on one
    host alone.
    """
    rank = environment_rank()
    if rank == 0:
        print(text, file=sys.stderr, flush=True)
    elif _rank_0_goes_on():
        print(f"{text} (rank {rank} on {socket.gethostname()})", file=sys.stderr, flush=True)


def _rank_0_goes_on() -> bool:
    """Whether it opens the port where the ranks meet; torchrun's is open anyhow: there, whether this rank lives on."""
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    meeting = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", 0))
    ends = monotonic() + LINGER_SECONDS
    while monotonic() < ends:
        sleep(0.5)
        if not by_torchrun:
            with suppress(OSError), socket.create_connection(meeting, timeout=2):
                return True
    return by_torchrun


def end_process(code: int) -> NoReturn:
    """Ends this process with an exit code: its exit handlers run, the interpreter's teardown does not.

    A thread of gloo that lets go of its last collective's tensor takes the GIL for it, some time after the collective
    has returned; if the interpreter is being torn down by then, that aborts the process (exit code -6). Leaving the
    process group does not help: DeepSpeed's references keep it and its threads alive.
    """
    atexit._run_exitfuncs()  # as multiprocessing does in its children
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
