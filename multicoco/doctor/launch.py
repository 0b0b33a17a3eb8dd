"""The launcher itself: whether it finds the master, and the bandwidth that the ranks it starts have between them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from multicoco.doctor.allreduce import BYTES, MARK
from multicoco.doctor.checks import Row
from multicoco.doctor.hosts import CONTACT_SECONDS, SOURCE, Host, mistake

LAUNCH_SECONDS = 60  # for ssh, and the imports on the slowest host

_NETWORK = (
    "name the interface that the hosts share in .deepspeed_env, NCCL_SOCKET_IFNAME=eth0 on GPUs and "
    "GLOO_SOCKET_IFNAME=eth0 on CPUs (`ip -br address` lists them), and let the firewall pass TCP between the hosts "
    "(master port {port}, and those above 1024 that the ranks choose)"
)


def check_master(hosts: Sequence[Host]) -> Iterator[Row]:
    """DeepSpeed asks the first host for its address with plain ssh, without the options that it gives to pdsh."""
    first = hosts[0]
    if not first.is_remote or not os.environ.get("PDSH_SSH_ARGS_APPEND"):
        return
    plain = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONTACT_SECONDS // 2}", first.name, "hostname"]
    try:
        works = subprocess.run(plain, capture_output=True, timeout=CONTACT_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        works = False
    if works:
        yield Row("launcher", first.name, "ok", "plain ssh works as well")
    else:
        remedy = (
            "put the options into ~/.ssh/config, or start the run with `deepspeed --no_ssh_check --master_addr "
            f"{first.facts['address']} ...`"
        )
        yield Row("launcher", first.name, "warning", "reached with PDSH_SSH_ARGS_APPEND only", remedy)


def check_bandwidth(hosts: Sequence[Host], hostfile: Path | None, seconds: int) -> Row:
    """An all_reduce over all ranks, started by `deepspeed`; every process ends after so many seconds at the latest."""
    name = "all ranks"
    if len(hosts) > 1 and not shutil.which("pdsh"):
        return Row("all_reduce", name, "FAIL", "pdsh is not installed here", "install it (apt install pdsh)")
    address, port = hosts[0].facts["address"], hosts[0].facts["free_port"]
    where = ["--hostfile", str(hostfile or ""), "--master_port", str(port)]
    if hostfile and not address:
        remedy = f"give {hosts[0].name} an address, or put a host first that has one: the ranks meet at the first host"
        return Row("all_reduce", name, "FAIL", f"`hostname -I` of {hosts[0].name} names no address", remedy)
    if hostfile:
        where += ["--no_ssh_check", "--master_addr", address]
    module = ["--no_local_rank", "--module", "multicoco.doctor.allreduce", str(seconds)]
    environment = os.environ | {"PYTHONPATH": f"{SOURCE}:{SOURCE}/kernels:{os.environ.get('PYTHONPATH', '')}"}
    launcher = subprocess.Popen(
        [sys.executable, "-m", "deepspeed.launcher.runner", *where, *module],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        launcher.communicate(timeout=seconds + LAUNCH_SECONDS)
        late = False
    except subprocess.TimeoutExpired:
        late = True
    finally:
        said = _end(launcher)
    remedy = _NETWORK.format(port=port)
    if f"port {port} of" in said:  # chosen when the host was asked, and taken since
        remedy = "start `multicoco doctor` again: it takes another port"
    # where a rank says what is wrong, the others only wait for it until their time is over
    late = late or f"return code = -{signal.SIGALRM.value}" in said
    if late and "error: " not in said.lower():
        return Row("all_reduce", name, "FAIL", f"not done after {seconds} s", remedy)
    answers = [line.partition(MARK)[2] for line in said.splitlines() if MARK in line]
    if launcher.returncode or not answers:
        return Row("all_reduce", name, "FAIL", mistake(said), remedy)
    measured = json.loads(answers[0])
    if measured["ranks"] == 1:
        return Row("all_reduce", name, "ok", "one rank: nothing to measure")
    found = f"{measured['gb_per_s']:.2f} GB/s bus bandwidth, {measured['ranks']} ranks, {BYTES >> 20} MiB"
    return Row("all_reduce", name, "ok", found)


def _end(launcher: subprocess.Popen[str]) -> str:
    """All that it has said. The launcher's own answer to SIGTERM is a `pkill` that would meet other runs too; killed,
    it does not come to it. Ranks that are left on the hosts end themselves."""
    with suppress(ProcessLookupError):  # it has come to its end
        os.killpg(launcher.pid, signal.SIGKILL)
    return launcher.communicate()[0]
