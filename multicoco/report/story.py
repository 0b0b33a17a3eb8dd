"""A run in sentences: what was trained, on what, by what, with which result, and what went wrong."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multicoco.report.folder import RunFolder
from multicoco.report.locks import owner


def trained(run: RunFolder) -> str:
    """What was trained on what, or asked about what."""
    config, state = run.config, run.newest
    start = config.get("load_model_path") or config.get("model_id") or "an unknown model"
    if config.get("mode") == "eval_only" or (not state and not run.metrics):
        checkpoint = next((s["checkpoint"] for s in run.summaries.values() if "checkpoint" in s), start)
        return f"An evaluation of {checkpoint} on {config.get('val_path', 'unknown questions')}."
    method = config.get("method") or str(config.get("mode", "an unknown method")).removesuffix("_train")
    text = f"Trained by the method {method} on {config.get('train_path', 'unknown records')}, starting from {start}"
    if state is None:
        return f"{text}; no checkpoint yet."
    text += (
        f": {_count(state.epoch, 'epoch')} of {config.get('num_epochs', '?')}, {_count(state.step, 'optimizer step')}"
    )
    if state.global_batch:
        text += f" of {_count(state.global_batch, 'example')}"
    if state.world_size:
        text += f", on {_count(state.world_size, 'process', 'processes')} under ZeRO-{state.zero_stage}"
    stages = sorted({line["train/stage"] for line in run.metrics if isinstance(line.get("train/stage"), int)})
    return f"{text}; {'stages ' + ', '.join(map(str, stages)) if len(stages) > 1 else 'one stage'}."


def results(run: RunFolder) -> list[str]:
    """Of the newest evaluations without interventions, one a sentence."""
    return [result(mode, summary) for mode, summary in run.summaries.items() if "intervention" not in summary]


def result(mode: str, summary: dict[str, Any]) -> str:
    accuracy, n, interval = summary.get("accuracy"), summary.get("n", 0), summary.get("ci95")
    if accuracy is None or not interval:
        return f"{mode}: no answer is known, so there is no accuracy."
    text = f"{mode}: accuracy {accuracy:.3f} (95% interval {interval[0]:.3f} to {interval[1]:.3f}, n = {n}"
    text += f"; guessing gives {summary['chance']:.3f})" if summary.get("chance") is not None else ")"
    if "stage" in summary:
        text += f", at stage {summary['stage']}"
    unclear = [(summary.get("n_unparsed"), "unparsed"), (summary.get("n_truncated"), "cut off")]
    said = [f"{number} {what}" for number, what in unclear if number]
    return text + (f"; {' and '.join(said)}" if said else "") + "."


def made_by(run: RunFolder) -> str:
    """Software, machine, time."""
    if not run.starts:
        return "What it was made by is not known, its environment.json is gone."
    newest = run.starts[-1]
    return f"By {software(newest)}; started {newest.get('started', '?')} by `{newest.get('command', '?')}`."


def software(environment: dict[str, Any]) -> str:
    """What `tracking.environment` says of programs and machine, as far as it is there."""
    git = environment.get("git")
    changed = " with changes that are not committed" if isinstance(git, dict) and git.get("dirty") else ""
    revision = f"git {str(git.get('commit'))[:12]}{changed}" if isinstance(git, dict) else "no git revision"
    names = ("python", "torch", "deepspeed", "transformers")
    versions = "".join(f", {name} {environment[name]}" for name in names if environment.get(name))
    host = f" on {environment['host']}" if environment.get("host") else ""
    machine = environment.get("gpu") or environment.get("cpu")
    hardware = f" ({machine}, {environment.get('cores', '?')} cores)" if machine else ""
    return f"MultiCoCo {environment.get('multicoco', '?')} ({revision}){versions}{host}{hardware}"


def time_taken(run: RunFolder) -> float:
    """Seconds of all epochs that were trained to their end."""
    return sum(run.series("train/epoch_seconds")[1])


def wrong(run: RunFolder) -> list[str]:
    """What went wrong or otherwise than planned, as far as the files tell."""
    said = []
    counts = next((line for line in reversed(run.metrics) if isinstance(line.get("data/too_long"), int)), None)
    if counts:
        left_out = _count(counts["data/too_long"], "example was", "examples were")
        said.append(f"{left_out} too long and left out, {counts.get('data/examples', '?')} were trained on.")
    skipped = [line["train/skipped_steps"] for line in run.metrics if isinstance(line.get("train/skipped_steps"), int)]
    if skipped:
        said.append(f"{_count(max(skipped), 'step was', 'steps were')} skipped, the gradient not being finite.")
    not_finite = sum("train/lr" in line and line.get("train/loss") is None for line in run.metrics)
    if not_finite:
        said.append(f"{_count(not_finite, 'log entry has', 'log entries have')} no finite loss.")
    if len(run.starts) > 1:
        starts = ", ".join(str(start.get("started", "?")) for start in run.starts[1:])
        said.append(f"It was started {len(run.starts)} times, again at {starts}.")
        said += _other_versions(run.starts)
    for last, step in run.went_back:
        said.append(
            f"It went on from before step {step} after step {last} had been logged: these steps were done again."
        )
    if earlier := sorted(run.path.glob("config.*.yaml")):
        names = ", ".join(path.name for path in earlier)
        said.append(f"Its config was changed between starts; earlier ones: {names}.")
    if damaged := sorted((run.path / "checkpoints").glob("*.damaged")):
        said.append(f"Damaged checkpoints were put aside: {', '.join(path.name for path in damaged)}.")
    return said


def _other_versions(starts: Sequence[dict[str, Any]]) -> list[str]:
    names = ("git", "torch", "deepspeed", "transformers", "multicoco", "host")
    changed = [name for name in names if any(start.get(name) != starts[0].get(name) for start in starts)]
    return [f"Not all starts had the same {', '.join(changed)}."] if changed else []


def state_of(run: RunFolder) -> str:
    """running, finished, evaluated, stopped, or new."""
    if owner(run.path):
        return "running"
    newest, config = run.newest, run.config
    if config.get("mode") == "eval_only":
        return "evaluated" if run.summaries else "stopped"
    if newest is None:
        return "stopped" if run.metrics else "new"
    is_finished = newest.is_finished(config.get("num_epochs", 0), bool(config.get("val_path")))
    return "finished" if is_finished else "stopped"


def last_sign(run: RunFolder) -> float | None:
    """When something was written last, in unix seconds."""
    files = [run.path / name for name in ("metrics.jsonl", "environment.json", "config.yaml", "evaluation")]
    times = [file.stat().st_mtime for file in files if file.exists()]
    return max(times, default=None)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shown_path(path: Path) -> str:
    """On one line of a terminal, relative to the current folder if it is below."""
    text = os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
    return "".join(character if character.isprintable() else "?" for character in text)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
