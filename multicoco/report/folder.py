"""What a run folder holds. A run that still goes on, or that has lost a file, is read as far as it goes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from multicoco.engine.trainer_state import TrainerState, age_key, all_checkpoints, read_state
from multicoco.errors import UserError
from multicoco.evaluation.report import read_json_object, read_text

Line = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """What was read.

    Attributes:
        config: the resolved run config; {} if it is gone.
        starts: the environment of every start, the newest last.
        metrics: lines of metrics.jsonl, without those of steps that were trained again later.
        went_back: (from, to) steps, each time that a start began before what had been logged.
        summaries: of evaluation/<mode>.json, by mode.
        states: of the checkpoints, by their folder, the newest last.
        problems: what could not be read.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[Line] = field(default_factory=list)
    went_back: list[tuple[int, int]] = field(default_factory=list)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[Path, TrainerState] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def newest(self) -> TrainerState | None:
        return next(reversed(self.states.values()), None)

    @property
    def base(self) -> Path:
        """Where the run was started, which the paths in its config are relative to, as far as its folder tells."""
        inside = [str(self.config.get("output_dir", "runs"))]
        if self.config.get("use_run_name_in_output_dir", True):
            inside.append(str(self.config.get("name", "")))
        parts, own = Path(*inside).parts, self.path.resolve().parts
        return Path(*own[: -len(parts)]) if own[-len(parts) :] == parts else Path()

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a number that was logged."""
        lines = [line for line in self.metrics if _is_number(line.get(key))]
        return [line["step"] for line in lines], [float(line[key]) for line in lines]


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("config.yaml", "metrics.jsonl", "evaluation", "checkpoints"))


def read_run(path: Path, tail: int | None = None) -> RunFolder:
    """Reads a run folder.

    Args:
        tail: read so many bytes from the end of metrics.jsonl, and not all of it.

    Raises:
        UserError: it is none.
    """
    if not is_run(path):
        raise UserError(f"{path} is no run folder: it has neither config.yaml nor metrics.jsonl nor evaluation/")
    run = RunFolder(path)
    run.config.update(_guarded(run, path / "config.yaml", _read_yaml) or {})
    run.starts.extend(_read_starts(run))
    run.metrics.extend(_standing(run, tail))
    # untouched before interventions, whose names go on behind a dot
    for file in sorted((path / "evaluation").glob("[!.]*.json"), key=lambda file: file.stem.split(".")):
        if summary := _guarded(run, file, lambda file: read_json_object(read_text(file), str(file))):
            run.summaries[file.stem] = summary
    for checkpoint in sorted(all_checkpoints(path / "checkpoints"), key=age_key):
        if state := _guarded(run, checkpoint, read_state):
            run.states[checkpoint] = state
    return run


def _guarded(run: RunFolder, path: Path, read: Any) -> Any:
    """What `read` makes of a file, None if it is not there or cannot be read, which is noted."""
    if not path.exists():
        return None
    try:
        return read(path)
    except (UserError, OSError, ValueError, yaml.YAMLError) as error:
        run.problems.append(str(error) if isinstance(error, UserError) else f"{path} cannot be read: {error}")
        return None


def _read_yaml(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _read_starts(run: RunFolder) -> list[dict[str, Any]]:
    """Runs of before starts.jsonl know their newest start alone."""
    starts = list(read_lines(run.path / "starts.jsonl", run.problems))
    newest = _guarded(run, run.path / "environment.json", lambda file: read_json_object(read_text(file), str(file)))
    return starts or ([newest] if newest else [])


def read_lines(path: Path, problems: list[str], tail: int | None = None) -> Iterator[Line]:
    """The JSON objects of a file of lines, if it is there. The last line may be in the making.

    Args:
        tail: see `read_run`.
    """
    if not path.exists():
        return
    broken = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        if tail is not None and (start := path.stat().st_size - tail) > 0:
            file.seek(start)
            file.readline()  # the rest of one
        for line in file:
            try:
                content = json.loads(line)
            except ValueError:
                broken += line.endswith("\n")
                continue
            if isinstance(content, dict):
                yield content
    if broken:
        problems.append(f"{path}: {broken} lines are no JSON and were left out")


def _standing(run: RunFolder, tail: int | None) -> list[Line]:
    """The lines that count: where a run went on from an earlier step, what it had logged beyond is done again."""
    standing: list[Line] = []
    trained = 0
    for line in read_lines(run.path / "metrics.jsonl", run.problems, tail):
        step = line.get("step")
        if not isinstance(step, int) or not _is_number(line.get("time")):
            continue
        if "train/lr" in line:
            if step <= trained:
                run.went_back.append((trained, step))
                standing = [earlier for earlier in standing if earlier["step"] < step]
            trained = step
        standing.append(line)
    return standing


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
