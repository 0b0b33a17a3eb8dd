"""What a run ran on."""

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from multicoco import __version__
from multicoco.hardware import processor

_PACKAGES = ("torch", "deepspeed", "transformers")


def environment() -> dict[str, Any]:
    """Revision of the source, versions, hardware, host and command of this process."""
    return {
        "git": _git_revision(Path(__file__)),
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "multicoco": __version__,  # known in a checkout that is not installed, too
        **_hardware(),
        "host": platform.node(),
        "command": shlex.join(sys.argv),
        "launcher": _launcher(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _hardware() -> dict[str, Any]:
    import torch  # who only reads what runs have left needs none

    found = {"cpu": processor(), "cores": os.cpu_count()}
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _launcher() -> str:
    """What stood before train.py, as far as it leaves traces."""
    size = int(os.environ.get("WORLD_SIZE") or os.environ.get("OMPI_COMM_WORLD_SIZE") or 1)
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return f"mpirun -n {size} python"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun --nnodes {size // here} --nproc_per_node {here}"
    if any(argument.startswith("--local_rank") for argument in sys.argv):
        return f"deepspeed --num_gpus {size}" if size == here else "deepspeed --hostfile HOSTFILE"
    return "python" if size == 1 else "LAUNCHER"


def _git_revision(source: Path) -> dict[str, Any] | None:
    """Commit and whether the checkout differs from it; None where git does not track the source file."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)  # site-packages may lie in another project's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None
