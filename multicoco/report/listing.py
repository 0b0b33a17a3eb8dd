"""`multicoco runs`: a table of runs, and how to go on with those that have stopped."""

import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from multicoco.errors import UserError
from multicoco.evaluation.report import aligned
from multicoco.report import story
from multicoco.report.folder import RunFolder, is_run, read_run

_DEEPEST = 6
_TAIL = 200_000  # bytes of metrics.jsonl that are read
_INSIDE = {"checkpoints", "samples", "evaluation", "thoughts", "wandb", "tensorboard"}  # of runs


@dataclass(frozen=True)
class Listed:
    """A line of the table.

    Attributes:
        state: running, finished, evaluated, stopped or new.
        best: accuracy in its last stage, or of the evaluation.
        seen: when it last wrote something, in unix seconds.
        command: by which a run that has stopped goes on.
    """

    path: Path
    state: str
    stage: int | None
    epochs: str
    step: int | None
    best: float | None
    seen: float | None
    command: str | None


def find_runs(folder: Path) -> list[Path]:
    """All run folders at or below a folder, by their names.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one that holds runs")
    return sorted(_below(folder, _DEEPEST))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    if depth:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.is_dir() and e.name not in _INSIDE and not e.name.startswith(".")]
        for name in names:
            try:
                yield from _below(folder / name, depth - 1)
            except OSError:  # it is another user's, or gone by now
                continue


def list_run(path: Path) -> Listed:
    run = read_run(path, tail=_TAIL)
    state, newest = story.state_of(run), run.newest
    stages = [line["train/stage"] for line in run.metrics if "train/stage" in line]
    stage = stages[-1] if stages else newest.stage if newest else next(_stages(run), None)
    steps = [line["step"] for line in run.metrics if "train/lr" in line]
    is_training = run.config.get("mode") != "eval_only"
    return Listed(
        path,
        state,
        stage,
        f"{newest.epoch if newest else 0} of {run.config.get('num_epochs', '?')}" if is_training else "",
        steps[-1] if steps else newest.step if newest else None,
        _best(run),
        story.last_sign(run),
        resume_command(run) if state == "stopped" and is_training else None,
    )


def _stages(run: RunFolder) -> Iterator[int]:
    yield from (summary["stage"] for summary in run.summaries.values() if "stage" in summary)


def _best(run: RunFolder) -> float | None:
    if run.states:
        last = max(state.stage for state in run.states.values())
        known = [s.accuracy for s in run.states.values() if s.stage == last and s.accuracy is not None]
    else:
        found = [summary.get("accuracy") for summary in run.summaries.values() if "intervention" not in summary]
        known = [accuracy for accuracy in found if accuracy is not None]
    return max(known, default=None)


def resume_command(run: RunFolder) -> str | None:
    """The command of its last start, with the launcher if that is known."""
    start = run.starts[-1] if run.starts else {}
    if not isinstance(start.get("command"), str):
        return None
    parts = [part for part in shlex.split(start["command"]) if not part.startswith(("--local_rank", "--local-rank"))]
    return f"{start.get('launcher', 'LAUNCHER')} {shlex.join(parts)}"


def format_runs(runs: list[Listed]) -> str:
    """The table, then the commands."""
    rows = [
        [
            story.shown_path(run.path),
            run.state,
            "" if run.stage is None else str(run.stage),
            run.epochs,
            "" if run.step is None else f"{run.step:,}",
            "" if run.best is None else f"{run.best:.3f}",
            "" if run.seen is None else f"{story.duration(max(0.0, time.time() - run.seen))} ago",
        ]
        for run in runs
    ]
    lines = aligned([["run", "state", "stage", "epochs", "step", "best accuracy", "last sign"], *rows])
    stopped = [run for run in runs if run.command]
    if stopped:
        lines += ["", "These have stopped; the same command goes on:"]
        lines += [f"  {story.shown_path(run.path)}: {run.command}" for run in stopped]
    return "\n".join(line.rstrip() for line in lines)
