"""Training runs that can be interrupted, a second or two each."""

from pathlib import Path
from typing import Any

from runs import RunServer

ROOT = Path(__file__).resolve().parents[2]


class Runs:
    """Runs of one config, by their names."""

    def __init__(self, home: Path, server: RunServer):
        self.home = home
        self.server = server

    def __call__(
        self,
        name: str,
        *settings: str,
        ranks: int = 1,
        kill: dict[str, Any] | None = None,
        allow_change: tuple[str, ...] = (),
    ) -> tuple[list[int], str]:
        """Runs to its end, or until `kill` (see run_server.py); "step" is when one is logged.

        Returns: the ranks' exit codes, and what all of them said.
        """
        if kill:
            kill |= {"file": str(self.home / "runs" / name / "metrics.jsonl")}
        ended = self.server.run(
            self.home / "run.yaml",
            f"name={name}",
            *settings,
            ranks=ranks,
            kill=kill,
            allow_change=allow_change,
        )
        self.said, self.killed = ended.said, ended.killed
        return ended.codes, "\n".join(ended.said)
