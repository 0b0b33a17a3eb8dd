"""Two hosts on one machine: network namespaces with an address, a host name and an sshd each, joined by a veth pair."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

from multicoco.engine.deepspeed import free_port

NEEDED = ("pdsh", "ssh", "ssh-keygen", "ip", "unshare", "/usr/sbin/sshd")
PORT = 2299


def missing() -> str | None:
    """Why two hosts cannot be made here, or None."""
    if absent := [program for program in NEEDED if shutil.which(program) is None]:
        return f"not installed: {', '.join(absent)} (Debian packages pdsh, openssh-server, iproute2)"
    tried = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, text=True)
    return f"no right to make namespaces: {tried.stderr.strip()}" if tried.returncode else None


class TwoHosts:
    """Running hosts a and b. A launch runs on a, as a user's shell would.

    Attributes:
        names: of the hosts, as the hostfile has them.
        environment: of a launch.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        tag = f"{os.getpid() % 10_000}"
        self.spaces = [f"mcc{tag}{side}" for side in "ab"]
        self.names = ["node-a", "node-b"]
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        self.daemons: list[subprocess.Popen] = []
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OMP_")},
            "PDSH_SSH_ARGS_APPEND": f"-F {folder}/ssh_config",
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "HOME": str(folder),
            "PWD": str(folder),
        }

    def run_in(self, host: int, *command: str, **options) -> subprocess.Popen:
        return subprocess.Popen(["ip", "netns", "exec", self.spaces[host], *command], **options)

    def start(self) -> None:
        folder = self.folder
        for space in self.spaces:
            _call("ip", "netns", "add", space)
        # one name on both sides: GLOO_SOCKET_IFNAME is the same for all hosts
        _call(*f"ip link add eth7 netns {self.spaces[0]} type veth peer name eth7 netns {self.spaces[1]}".split())
        for space, address in zip(self.spaces, self.addresses, strict=True):
            _call("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth7")
            for device in ("lo", "eth7"):
                _call("ip", "-n", space, "link", "set", device, "up")
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key"))
        (folder / "authorized").write_text((folder / "key.pub").read_text())
        (folder / "authorized").chmod(0o600)
        (folder / "ssh_config").write_text(
            "".join(
                f"Host {name} {address}\n  HostName {address}\n"
                for name, address in zip(self.names, self.addresses, strict=True)
            )
            + f"Host *\n  Port {PORT}\n  User root\n  IdentityFile {folder}/key\n  StrictHostKeyChecking no\n"
            "  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n  ServerAliveInterval 3\n  ServerAliveCountMax 3\n"
        )
        (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in self.names))
        self._share_builds(folder / "extensions")
        (folder / ".deepspeed_env").write_text(
            f"GLOO_SOCKET_IFNAME=eth7\nOMP_NUM_THREADS=1\nTORCH_EXTENSIONS_DIR={folder}/extensions\n"
        )
        for host, name in enumerate(self.names):
            sshd = (
                f"/usr/sbin/sshd -D -e -f /dev/null -p {PORT} -h {folder}/host_key -o PidFile=none -o UsePAM=no "
                f"-o AuthorizedKeysFile={folder}/authorized -o StrictModes=no -o PermitRootLogin=yes"
            )
            start = f"hostname {name} && exec {sshd}"
            log = (folder / f"sshd_{name}.log").open("w")
            self.daemons.append(self.run_in(host, "unshare", "--uts", "sh", "-c", start, stderr=log))
            deadline = time.monotonic() + 20
            probe = ["ip", "netns", "exec", self.spaces[0], "ssh", "-F", str(folder / "ssh_config"), name, "hostname"]
            while subprocess.run(probe, capture_output=True, text=True).stdout.strip() != name:
                if time.monotonic() > deadline:
                    raise RuntimeError((folder / f"sshd_{name}.log").read_text())
                time.sleep(0.2)

    def _share_builds(self, root: Path) -> None:
        """Both find what this machine has compiled, which is no other: they would take a minute each."""
        built = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root(), socket.gethostname())
        built.mkdir(parents=True, exist_ok=True)
        root.mkdir()
        for name in self.names:
            (root / name).symlink_to(built)

    def launcher(self, *options: str) -> list[str]:
        """What stands before train.py on a command line on host a."""
        where = ["--master_addr", self.addresses[0], "--master_port", str(free_port())]
        no_check = "--no_ssh_check"  # it reads the user's own ssh config only
        deepspeed = str(Path(sys.executable).parent / "deepspeed")
        return [deepspeed, no_check, "--hostfile", str(self.folder / "hostfile"), *where, *options]

    def launch(self, config: Path, *arguments: str, launcher: Sequence[str] = ()) -> subprocess.Popen:
        """`deepspeed --hostfile hostfile train.py config` on host a, its output in launch.log."""
        train = Path(__file__).resolve().parents[2] / "train.py"
        return self.type(*self.launcher(*launcher), str(train), str(config), *arguments)

    def type(self, *command: str) -> subprocess.Popen:
        """A command on host a, its output in launch.log."""
        log = (self.folder / "launch.log").open("w")
        return self.run_in(
            0, *command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True
        )

    def output(self) -> str:
        return (self.folder / "launch.log").read_text()

    def trainers(self, host: int) -> list[int]:
        """Process ids of train.py on a host, launchers not counted."""
        listed = subprocess.run(["ip", "netns", "pids", self.spaces[host]], capture_output=True, text=True, check=True)
        return [pid for pid in map(int, listed.stdout.split()) if _is_trainer(pid)]

    def set_link(self, host: int, state: str) -> None:
        """`down`: the host's network is gone, as with a pulled cable; `up`: it is back."""
        _call("ip", "-n", self.spaces[host], "link", "set", "eth7", state)

    def stop(self) -> None:
        for space in self.spaces:
            listed = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
            subprocess.run(["kill", "-9", *listed.stdout.split()], capture_output=True)
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
        for daemon in self.daemons:
            daemon.wait()


@contextmanager
def two_hosts(folder: Path):
    hosts = TwoHosts(folder)
    try:
        hosts.start()
        yield hosts
    finally:
        hosts.stop()


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _is_trainer(pid: int) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(argument.endswith(b"train.py") for argument in arguments[:4]) and b"deepspeed.launcher" not in b"".join(
        arguments
    )
