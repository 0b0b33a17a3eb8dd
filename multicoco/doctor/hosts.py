"""Talks to all hosts at once: first whether they answer and what their clocks say, then their probes.

A host is reached as the launcher (pdsh) reaches it: `ssh` with the user's configuration and PDSH_SSH_ARGS_APPEND.
"""

import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import multicoco

CONTACT_SECONDS = 20  # for a connection and one small command
PROBE_SECONDS = 600  # imports from a cold network file system, and the hashes of large data files
GOODBYE_SECONDS = 10

SOURCE = Path(multicoco.__file__).resolve().parents[1]


@dataclass
class Host:
    """A host, and what has been found out about it.

    Attributes:
        slots: processes that are to run there; None where the launcher decides, on this machine alone.
        is_remote: reached over ssh.
        unreachable: ssh's words when it could not be.
        missing: of the folder and python that the launcher uses, those that are not there.
        clock: its clock minus this machine's, in seconds, the way there and back taken into account.
        clock_error: how far off `clock` can be: half of that way.
        silent: the last words of its probe when it did not answer.
        facts: see `probe.facts`; empty when it did not answer.
        seen: tokens in the run folder that it sees, of the hosts of these names.
    """

    name: str
    slots: int | None
    is_remote: bool
    unreachable: str | None = None
    missing: list[str] = field(default_factory=list)
    clock: float = 0.0
    clock_error: float = 0.0
    silent: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)


def question(hosts: Sequence[Host], config_path: Path, overrides: Sequence[str]) -> None:
    """Fills in what every host answers. Nothing that it writes on them is left."""
    asyncio.run(_question(hosts, config_path, overrides))


async def _question(hosts: Sequence[Host], config_path: Path, overrides: Sequence[str]) -> None:
    await asyncio.gather(*map(_contact, hosts))
    probes = [_Probe(host) for host in hosts if not host.unreachable and not host.missing]
    request = {"config": str(config_path), "overrides": list(overrides)}
    try:
        await asyncio.gather(*(probe.ask_facts(request) for probe in probes))
        talking = {probe.token: probe for probe in probes if probe.host.facts}
        made = [folder for probe in talking.values() for folder in probe.host.facts["output"]["made"]]
        everything = {"tokens": list(talking), "made": made}
        for probe, answer in zip(
            talking.values(), await asyncio.gather(*(p.ask(everything) for p in talking.values())), strict=True
        ):
            probe.host.seen = [talking[token].host.name for token in (answer or {}).get("seen", [])]
    finally:
        await asyncio.gather(*(probe.end() for probe in probes))


def ssh(host: str, command: str) -> list[str]:
    """The command line that runs a shell command on a host, or fails without asking anything."""
    options = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    return ["ssh", "-o", "BatchMode=yes", *options, "-o", f"ConnectTimeout={CONTACT_SECONDS // 2}", host, command]


async def _start(host: Host, command: str, stdin: int) -> asyncio.subprocess.Process:
    arguments = ssh(host.name, command) if host.is_remote else ["sh", "-c", command]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*arguments, stdin=stdin, stdout=pipe, stderr=pipe, limit=2**24)


async def _contact(host: Host) -> None:
    """Whether the host answers, what its clock says, and whether it has the folder and the python."""
    needed = {"folder": ("-d", os.getcwd()), "python": ("-x", sys.executable)}
    tests = "; ".join(f"test {test} {shlex.quote(path)} && echo {what}" for what, (test, path) in needed.items())
    asked = time.time()
    try:
        process = await _start(host, f"date +%s.%N; {tests}; true", asyncio.subprocess.DEVNULL)
    except OSError as error:  # no ssh on this machine
        host.unreachable = str(error)
        return
    try:
        out, errors = await asyncio.wait_for(process.communicate(), CONTACT_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        host.unreachable = f"no answer in {CONTACT_SECONDS} s"
        return
    answered = time.time()
    if process.returncode:
        host.unreachable = mistake(errors.decode(errors="replace"))
        return
    lines = out.decode().splitlines()
    host.clock = next(float(line) for line in lines if line.replace(".", "", 1).isdigit()) - (asked + answered) / 2
    host.clock_error = (answered - asked) / 2
    host.missing = [f"{what} {path}" for what, (_, path) in needed.items() if what not in lines]


class _Probe:
    """The conversation with the probe of one host."""

    def __init__(self, host: Host):
        self.host = host
        self.token = f".doctor-{uuid4().hex}"
        self.process: asyncio.subprocess.Process | None = None

    async def ask_facts(self, request: dict[str, Any]) -> None:
        paths = [str(SOURCE), str(SOURCE / "kernels")]  # a checkout that is not installed, as in train.py
        command = (
            f"cd {shlex.quote(os.getcwd())} && PYTHONPATH={shlex.quote(':'.join(paths))}:$PYTHONPATH "
            f"exec {shlex.quote(sys.executable)} -m multicoco.doctor.probe"
        )
        self.process = await _start(self.host, f"sh -c {shlex.quote(command)}", asyncio.subprocess.PIPE)
        self.host.facts = await self.ask(request | {"token": self.token}) or {}

    async def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request; None, with the host's `silent` set, without one."""
        process = self.process
        assert process and process.stdin and process.stdout and process.stderr  # `ask_facts` starts it, with pipes
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            answer = await asyncio.wait_for(_answer(process.stdout), PROBE_SECONDS)
        except TimeoutError:
            self.host.silent = f"no answer in {PROBE_SECONDS} s"
            return None
        if answer is None:
            self.host.silent = mistake((await process.stderr.read()).decode(errors="replace"))
        return answer

    async def end(self) -> None:
        """The end of its input lets the probe remove its token; only a probe that does not end is killed."""
        if self.process is None:
            return
        assert self.process.stdin  # a pipe, as in `ask`
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), GOODBYE_SECONDS)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


async def _answer(stdout: asyncio.StreamReader) -> dict[str, Any] | None:
    async for line in stdout:
        if line.startswith(b"{"):  # a login shell may say something first
            answer: dict[str, Any] = json.loads(line)
            return answer
    return None


def mistake(said: str) -> str:
    """Of what a program said, the line that tells what went wrong: the first error, or else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line.lower()]
    return (errors[:1] or lines[-1:] or ["ended without a word"])[0][:300]
