"""Where C++ extensions are compiled on first use (DeepSpeed's operators, the attention kernel).

PyTorch guards a build with a file that a killed process leaves behind, and the next one waits for it for ever. Hosts
often share a home folder, but their processors need not be alike and none sees the others' processes. So every host
compiles in a folder of its own, where a guard that no living process holds open can be taken away.

Two environments that take turns in a folder each take the other's build for stale, since it names the other's paths,
and compile for a minute; so every environment has a folder of its own as well. Two versions of ninja do the same, as
when the environment is now on the path and now not; so the one that is installed with this package comes first.
"""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import ninja
import torch
from torch.utils.cpp_extension import get_default_build_root

MOMENT_S = 0.2  # PyTorch closes a guard just before it removes it: who is seen so is looked at once more


def prepare_builds() -> None:
    """Points TORCH_EXTENSIONS_DIR at the folder that this host has for this environment, below what it was, and removes
    abandoned guards there. The environment's ninja then comes first on the path.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    version = f"py{sys.version_info.major}{sys.version_info.minor}_torch{torch.__version__}"
    environment = sha256(sys.prefix.encode()).hexdigest()[:8]
    own = Path(socket.gethostname(), f"{version}_{environment}")
    if root.parts[-2:] != own.parts:
        root /= own
    os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, *(folder for folder in path if folder != ninja.BIN_DIR)])
    if any(_abandoned(root)):
        with (root / "sweeping").open("w") as sweeping:
            fcntl.flock(sweeping, fcntl.LOCK_EX)  # or a rank would take the guard of what another builds by now
            seen = set(_abandoned(root))
            time.sleep(MOMENT_S)
            for guard, _ in seen & set(_abandoned(root)):
                guard.unlink(missing_ok=True)


def _abandoned(root: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Guards that no process of this host and user holds open, and what tells each from a later one in its place."""
    for guard in root.glob("*/lock"):
        with suppress(FileNotFoundError):  # its build has just ended
            about = guard.stat()
            if not _is_open_somewhere(about):
                yield guard, (about.st_ino, about.st_mtime_ns)


def _is_open_somewhere(about: os.stat_result) -> bool:
    """Linux."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # that process or file has just gone, or belongs to another user
            if os.path.samestat(descriptor.stat(), about):
                return True
    return False
