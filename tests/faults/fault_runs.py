"""Training runs that can be interrupted, a few seconds each."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Runs:
    """Starts runs of one config; every call is a run of its own processes."""

    def __init__(self, home: Path):
        self.home = home
        # one thread each: forked processes must not inherit a pool of them
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
        command = [sys.executable, str(Path(__file__).with_name("run_server.py"))]
        self.server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(
        self, name: str, *settings: str, ranks: int = 1, kill: dict | None = None, allow_change: tuple[str, ...] = ()
    ) -> tuple[list[int], str]:
        """Runs to its end, or until kill (see `run_server`).

        Returns: the ranks' exit codes, and what rank 0 said.
        """
        log = self.home / "log"
        overrides = [part for setting in (f"name={name}", *settings) for part in ("--set", setting)]
        allowed = [part for key in allow_change for part in ("--allow-change", key)]
        request = {
            "arguments": [str(self.home / "run.yaml"), *overrides, *allowed],
            "ranks": ranks,
            "log": str(log),
            "metrics": str(self.home / "runs" / name / "metrics.jsonl"),
            "kill": kill,
        }
        print(json.dumps(request), file=self.server.stdin, flush=True)
        answer = self.server.stdout.readline()
        while not answer.startswith('{"codes"'):  # anything printed while importing
            assert answer, "the server has died"
            answer = self.server.stdout.readline()
        answer = json.loads(answer)
        self.killed = answer["killed"]
        self.said = [Path(f"{log}.{rank}").read_text() for rank in range(ranks)]
        return answer["codes"], self.said[0]
