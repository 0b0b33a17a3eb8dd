"""Hosts that are all this machine: an `ssh` first on PATH runs a host's own preparation, then the command, here."""

import os
import stat
import sys
from pathlib import Path

_SSH = """#!/bin/sh
options=
while :; do
    case "$1" in
        -o|-F|-l|-p) options="$options $1 $2"; shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
host=$1
shift
command=$*
export PATH={folder}/bin:$PATH
. {folder}/$host
exec sh -c "$command"
"""
_HOSTNAME = "#!/bin/sh\necho 127.0.0.1\n"
_LATE_CLOCK = "#!/bin/sh\necho $(($(/bin/date +%s) + 100)).5\n"

UNREACHABLE = "echo 'ssh: connect to host gone port 22: Connection refused' >&2; exit 255"
NEVER_ANSWERS = "exec sleep 60"
WITHOUT_PYTHON = f"command=$(echo \"$command\" | sed 's#{sys.executable}#/nowhere/python#g')"


class FakeCluster:
    """A hostfile, and what its hosts do before a command: lines of shell by their names."""

    def __init__(self, folder: Path, **hosts: str):
        self.folder = folder
        for name, preparation in hosts.items():
            (folder / name).write_text(preparation + "\n")
        _script(folder / "bin" / "ssh", _SSH.format(folder=folder))
        _script(folder / "bin" / "hostname", _HOSTNAME)
        self.hostfile = folder / "hostfile"
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in hosts))

    def join(self, monkeypatch) -> None:
        """From now on `ssh` and pdsh reach this cluster."""
        monkeypatch.setenv("PATH", f"{self.folder}/bin:{os.environ['PATH']}")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")


def wrong_clock(folder: Path) -> str:
    return f"export PATH={_script(folder / 'late' / 'date', _LATE_CLOCK).parent}:$PATH"


def other_torch(folder: Path) -> str:
    """Python finds torch 99.0 first."""
    metadata = folder / "other" / "torch-99.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    return f"export PYTHONPATH={metadata.parent.parent}"


def elsewhere(folder: Path, instead: Path) -> str:
    """Has other content where this machine has folder."""
    return f"command=$(echo \"$command\" | sed 's#{folder}#{instead}#g')"


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
