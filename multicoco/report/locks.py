"""Whether a run is going on, seen from outside: nothing is locked or written, so any user may ask."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

_SILENT_SECONDS = 600  # after which a run on another host is taken for ended


def owner(run: Path) -> str | None:
    """Who owns a run folder, as its lock says; None if nobody does.

    A lock is the system's, and lasts as long as its process. Of a process on another host only what it writes can be
    seen: it is taken for running as long as it logs.
    """
    file = run / ".lock"
    try:
        said, inode = file.read_text(encoding="utf-8", errors="replace").strip(), file.stat().st_ino
    except OSError:
        return None
    if f"process {os.getpid()} on {socket.gethostname()} " in f"{said} ":
        return None  # this one, which is done with its work if it asks
    if f" on {socket.gethostname()} " in said:
        return said if _is_locked(inode, said) else None
    with suppress(OSError):
        age = time.time() - (run / "metrics.jsonl").stat().st_mtime
        return said if said and age < _SILENT_SECONDS else None
    return None


def _is_locked(inode: int, said: str) -> bool:
    """By Linux's list of all locks; elsewhere, whether the process is there."""
    with suppress(OSError):
        locks = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
        return any("FLOCK" in line and f":{inode} " in line for line in locks)
    number = said.split()[1:2]
    try:
        os.kill(int(number[0]), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, IndexError):
        return False
    return True
