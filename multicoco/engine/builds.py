"""Where C++ extensions are compiled on first use (DeepSpeed's operators, the attention kernel).

PyTorch guards a build with a file that a killed process leaves behind, and the next one waits for it for ever. Hosts
often share a home folder, but their processors need not be alike and none sees the others' processes. So every host
compiles in a folder of its own, where a guard that no living process holds open can be taken away.

Two environments that take turns in a folder each take the other's build for stale, since it names the other's paths,
and compile for a minute; so every environment has a folder of its own as well. Two versions of ninja do the same, as
when the environment is now on the path and now not; so the one that is installed with this package comes first.
"""

import os
import socket
import sys
from hashlib import sha256
from pathlib import Path

import ninja
import torch
from torch.utils.cpp_extension import get_default_build_root


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
    for guard in root.glob("*/lock"):
        if not _is_open_somewhere(guard):
            guard.unlink(missing_ok=True)


def _is_open_somewhere(path: Path) -> bool:
    """Whether any process of this host and user has a file open. Linux."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if descriptor.samefile(path):
                return True
        except OSError:  # that process or file has just gone, or belongs to another user
            continue
    return False
