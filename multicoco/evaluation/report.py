"""A comparison of runs: one row per mode, as a table and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multicoco.errors import UserError
from multicoco.files import may_replace, write_json

_KEYS = ("accuracy", "n", "ci95", "mean_new_tokens", "mean_latent_passes", "seconds")


def write_summary(evaluations: dict[str, Path], trained: list[Path], out: Path) -> dict[str, Any]:
    """Sums up evaluations into one JSON file.

    Args:
        evaluations: mode -> run folder whose newest evaluation in that mode counts.
        trained: run folders whose training time is added up.
        out: the JSON file to write.

    Returns:
        What was written: "modes" (mode -> accuracy, n, ci95, ...), "chance", "train_seconds".

    Raises:
        UserError: a run's evaluation or metrics are missing or damaged, or the file cannot be written.
    """
    summaries = {mode: _read_evaluation(run / "evaluation" / f"{mode}.json") for mode, run in evaluations.items()}
    summary = {
        "modes": {mode: {key: summary[key] for key in _KEYS} for mode, summary in summaries.items()},
        "chance": next(iter(summaries.values()))["chance"],
        "train_seconds": sum(_train_seconds(run) for run in trained),
    }
    write_named(out, summary)
    return summary


def format_table(summary: dict[str, Any]) -> str:
    """The summary as aligned text."""
    header = ["mode", "accuracy", "95% interval", "n", "tokens", "latent passes", "seconds"]
    rows = [
        [
            mode,
            "unknown" if row["accuracy"] is None else f"{row['accuracy']:.3f}",
            "{:.3f} - {:.3f}".format(*row["ci95"]),
            str(row["n"]),
            f"{row['mean_new_tokens']:.1f}",
            f"{row['mean_latent_passes']:.1f}",
            f"{row['seconds']:.1f}",
        ]
        for mode, row in summary["modes"].items()
    ]
    chance = "" if summary["chance"] is None else f"chance {summary['chance']:.3f}, "
    return "\n".join(
        [*aligned([header, *rows]), f"{chance}training {summary['train_seconds'] / 60:.1f} minutes in all"]
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line a row, with columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _train_seconds(run: Path) -> float:
    path = run / "metrics.jsonl"
    lines = read_text(path).splitlines()
    metrics = [read_json_object(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    seconds: float = sum(line.get("train/epoch_seconds", 0.0) for line in metrics)
    return seconds


def _read_evaluation(path: Path) -> dict[str, Any]:
    content = read_json_object(read_text(path), str(path))
    missing = [key for key in (*_KEYS, "chance") if key not in content]
    if missing:
        raise UserError(f"{path}: not an evaluation, {', '.join(missing)} missing: evaluate the run again")
    return content


def read_json_object(text: str, source: str) -> dict[str, Any]:
    """The object in a text that comes from a file of a run, or a UserError that names it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid JSON ({error}): restore it, or run again under another name") from error
    if not isinstance(content, dict):
        raise UserError(f"{source}: must be a JSON object, found {content!r:.60}: is it a file of a run?")
    return content


def read_text(path: Path) -> str:
    """The text of a file of a run, or a UserError that names it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): run the training or evaluation first") from error


def write_named(out: Path, value: dict[str, Any]) -> None:
    """JSON into a file that the user has named, or a UserError that says why it cannot be. Only an earlier result of
    the kind, which has the same keys, is written over."""
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file in it")
    if out.exists() and not _may_go(out, value):
        raise UserError(f"{out} is there and holds something else: name another file, or remove it")
    try:
        write_json(out, value)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}): name another file") from error


def _may_go(file: Path, value: dict[str, Any]) -> bool:
    """Whether a file that is there is empty, or an earlier value."""

    def is_earlier(content: bytes) -> bool:
        earlier = json.loads(content.decode("utf-8"))
        return isinstance(earlier, dict) and earlier.keys() == value.keys()

    try:
        return may_replace(file, is_earlier)
    except (OSError, ValueError, RecursionError):
        return False
