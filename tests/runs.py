"""Whole training runs without a launcher: each is of its own processes, forked by a server that has imported all."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        codes: the ranks' exit codes.
        said: what each rank said, on stdout and stderr.
        killed: whether it was killed as asked for before its end.
    """

    codes: list[int]
    said: list[str]
    killed: bool

    @property
    def errors(self) -> list[str]:
        """The messages of all ranks together; none of them has said a traceback."""
        assert not any("Traceback" in text for text in self.said), "\n".join(self.said)
        return [line for text in self.said for line in text.splitlines() if line.startswith("error: ")]


def signalled_at(step: int, signal: str = "SIGTERM") -> str:
    """A `patch`: each rank signals to itself, by default as a scheduler does, when the losses of so many steps are
    read."""
    return f"""
import os, signal
from multicoco.training.loss_window import LossWindow

read, steps = LossWindow.read, []

def read_and_signal(window):
    steps.append(1)
    if len(steps) == {step}:
        os.kill(os.getpid(), signal.{signal})
    return read(window)

LossWindow.read = read_and_signal
"""


def entries(run: Path) -> list[dict[str, Any]]:
    """What a run has logged, in its order."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def logged(run: Path, key: str) -> list[Any]:
    """The values of one key."""
    return [entry[key] for entry in entries(run) if key in entry]


def losses(run: Path) -> list[float]:
    return logged(run, "train/loss")


class RunServer:
    """Does runs of `train.py` (see run_server.py), one at a time, `logs` holding what they say."""

    def __init__(self, logs: Path, **environment: str):
        self.logs = logs
        command = [sys.executable, str(Path(__file__).with_name("run_server.py"))]
        # one thread each: forked processes must not inherit a pool of them
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"} | environment
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        config: Path,
        *settings: str,
        ranks: int = 1,
        allow_change: tuple[str, ...] = (),
        kill: dict[str, Any] | None = None,
        patch: str = "",
    ) -> Ended:
        """Runs to its end, or until `kill`, in the config's folder.

        Args:
            kill: see run_server.py.
            patch: Python that every rank executes first.
        """
        overrides = [part for setting in settings for part in ("--set", setting)]
        allowed = [part for key in allow_change for part in ("--allow-change", key)]
        request = {
            "arguments": [str(config), *overrides, *allowed],
            "folder": str(config.parent),
            "ranks": ranks,
            "log": str(self.logs / "log"),
            "kill": kill,
            "patch": patch,
        }
        assert self.process.stdin and self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        while not (answer := self.process.stdout.readline()).startswith('{"codes"'):  # printed while importing
            assert answer, "the server has died"
        said = [(self.logs / f"log.{rank}").read_text() for rank in range(ranks)]
        return Ended(said=said, **json.loads(answer))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
