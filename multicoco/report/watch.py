"""`multicoco watch`: a run as it goes, read from its files. Nothing is written, so it may be another user's."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from multicoco.report import story
from multicoco.report.folder import Line, RunFolder, read_run
from multicoco.report.locks import owner

_TAIL = 2_000_000  # bytes of metrics.jsonl that are read
_BARS = "▁▂▃▄▅▆▇█"
_WIDE = 48  # values of a sparkline
_RECENT = 20  # log entries by which the time left is told


def watch(path: Path, seconds: float, once: bool, console: Console | None = None) -> None:
    """Shows a run until it has ended, or once.

    Args:
        seconds: between two looks.

    Raises:
        UserError: it is no run folder.
    """
    console = console or Console()
    run = read_run(path, tail=_TAIL)
    if once or not console.is_terminal:
        console.print(frame(run, time.time()))
        return
    with Live(frame(run, time.time()), console=console, auto_refresh=False) as live:
        while story.state_of(run) == "running":
            time.sleep(seconds)
            run = read_run(path, tail=_TAIL)
            live.update(frame(run, time.time()), refresh=True)


def frame(run: RunFolder, now: float) -> Table:
    """What is shown at a moment, in unix seconds."""
    table = Table(title=Text(run.name), show_header=False, box=None, padding=(0, 2, 0, 0), title_justify="left")
    logged = [line for line in run.metrics if "train/lr" in line]
    rows = {
        "state": f"{story.state_of(run)}{f', {who}' if (who := owner(run.path)) else ''}",
        "where": _where(run, logged),
        "loss": _sparkline([line["train/loss"] for line in logged if isinstance(line.get("train/loss"), int | float)]),
        "throughput": f"{logged[-1].get('train/tokens_per_s', 0):,.0f} tokens/s" if logged else "",
        "learning rate": f"{logged[-1]['train/lr']:.3g}" if logged else "",
        "skipped": f"{skipped} steps" if (skipped := max((_skipped(line) for line in logged), default=0)) else "",
        "thoughts": _thoughts(logged),
        "time left": _left(run, logged),
        "evaluation": _evaluation(run, now),
        "checkpoint": _checkpoint(run, now),
        "last entry": f"{_ago(now, run.metrics[-1]['time'])}" if run.metrics else "none yet",
        "problems": "\n".join(run.problems),
    }
    for name, value in rows.items():
        if value:
            table.add_row(Text(name, style="dim"), Text(value))
    return table


def _where(run: RunFolder, logged: Sequence[Line]) -> str:
    if not logged:
        return ""
    last, total = logged[-1], _total_steps(run)
    steps = f"step {last['step']:,}" + (f" of {total:,}" if total else "")
    return (
        f"stage {last.get('train/stage')}, epoch {last.get('train/epoch')} of {run.config.get('num_epochs')}, {steps}"
    )


def _total_steps(run: RunFolder) -> int | None:
    """By the last epoch that has ended: all have as many."""
    ended = [line for line in run.metrics if "train/epoch_seconds" in line and line.get("train/epoch")]
    epochs = run.config.get("num_epochs")
    if not ended or not isinstance(epochs, int):
        return None
    an_epoch: float = ended[-1]["step"] / ended[-1]["train/epoch"]
    return round(an_epoch * epochs)


def _left(run: RunFolder, logged: Sequence[Line]) -> str:
    """As fast as in the last entries; evaluations and saves come on top."""
    recent, total = logged[-_RECENT:], _total_steps(run)
    if len(recent) < 2 or total is None or story.state_of(run) != "running":
        return ""
    steps = recent[-1]["step"] - recent[0]["step"]
    a_step = (recent[-1]["time"] - recent[0]["time"]) / steps if steps > 0 else 0.0
    return f"about {story.duration((total - recent[-1]['step']) * a_step)}, without evaluations"


def _skipped(line: Line) -> int:
    return int(line.get("train/skipped_steps") or 0)


def _thoughts(logged: Sequence[Line]) -> str:
    last = logged[-1] if logged else {}
    rank, norm = last.get("thoughts/effective_rank"), last.get("thoughts/norm")
    return f"norm {norm:.2f}, effective rank {rank:.1f}" if rank is not None and norm is not None else ""


def _evaluation(run: RunFolder, now: float) -> str:
    for line in reversed(run.metrics):
        found = {key.split("/")[1]: value for key, value in line.items() if key.endswith("/accuracy")}
        if found:
            said = ", ".join("unknown" if value is None else f"{mode} {value:.3f}" for mode, value in found.items())
            return f"{said} at step {line['step']:,}, {_ago(now, line['time'])}"
    return ""


def _checkpoint(run: RunFolder, now: float) -> str:
    if not run.states:
        return ""
    path = next(reversed(run.states))
    return f"{path.name}, {_ago(now, (path / 'trainer.json').stat().st_mtime)}"


def _ago(now: float, then: float) -> str:
    return f"{story.duration(max(0.0, now - then))} ago"


def _sparkline(values: Sequence[float]) -> str:
    """The last values, each by the height of a block, and the last one as a number."""
    shown = values[-_WIDE:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown) + f" {shown[-1]:.4g}"
