"""What a run leaves to read: metrics.jsonl, samples, evaluations, its config and environment, W&B, a progress bar.

<run folder>/config.yaml            resolved; an earlier, different one is kept as config.1.yaml, ...
<run folder>/environment.json       git revision, versions, hardware, host, command
<run folder>/metrics.jsonl          one object a line; a value that is not finite is null
<run folder>/samples/<name>.jsonl   one generated answer a line
<run folder>/thoughts/<name>.safetensors  what is in the thoughts of these, if that is asked for
<run folder>/evaluation/<mode>.json summary of the newest evaluation in a mode
<run folder>/predictions/<name>_<mode>.<data set>.json  as the data set's own evaluation reads them
"""

import json
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from tqdm import tqdm

from multicoco import __version__
from multicoco.config import RunConfig
from multicoco.errors import UserError

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "deepspeed", "transformers")
_QUIET_SECONDS = 15  # between lines of a progress bar that goes to a file
_WANDB_SECONDS = 60  # that a run waits, at its start and at its end, for a W&B server that does not answer


def environment() -> dict[str, Any]:
    """Revision of the source, versions, hardware, host and command of this process."""
    return {
        "git": _git_revision(Path(__file__)),
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "multicoco": __version__,  # known in a checkout that is not installed, too
        **_hardware(),
        "host": platform.node(),
        "command": shlex.join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _hardware() -> dict[str, Any]:
    import torch  # who only reads what runs have left needs none

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count()}
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that readers see the old or the new file, never half of one."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """As `write_json`, for text."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_json`, for the content of any file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


class Tracker:
    """Writes a run's records. Only rank 0's is enabled; the others' do nothing.

    Args:
        wandb_id: of the W&B run to go on with, None for a new one.

    Attributes:
        environment: what `environment()` gave at the start; empty where disabled.

    Raises:
        UserError: the run folder cannot be written.
    """

    def __init__(self, run_dir: Path, config: RunConfig, wandb_id: str | None = None, enabled: bool = True):
        self.run_dir = run_dir
        self.enabled = enabled
        self.wandb_run: wandb.Run | None = None
        self.wandb_id = wandb_id
        self.environment = environment() if enabled else {}
        if not enabled:
            return
        try:
            self._keep_earlier_config(config.to_yaml())
            write_text(run_dir / "config.yaml", config.to_yaml())
            write_json(run_dir / "environment.json", self.environment)
            self.metrics_file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"run folder {run_dir} cannot be written ({error}): set another output_dir or name"
            ) from error
        if config.wandb.mode != "disabled":
            self._guarded("start", lambda: self._start_wandb(config))

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Appends one line to metrics.jsonl, with the step and the time in unix seconds, and logs to W&B."""
        if not self.enabled:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        line = json.dumps({"step": step, "time": time.time(), **finite})
        self._write("metrics.jsonl", lambda: print(line, file=self.metrics_file, flush=True))
        if (run := self.wandb_run) is not None:
            self._guarded("log to", lambda: run.log(metrics, step=step))

    def log_evaluation(
        self, name: str, mode: str, summary: dict[str, Any], samples: list[dict[str, Any]], step: int
    ) -> None:
        """An evaluation's summary and samples; `name` tells the samples of a run's evaluations apart. Thoughts that
        belonged to earlier samples of the name are gone."""
        if not self.enabled:
            return
        self._write("thoughts", lambda: self._thoughts(name, mode).unlink(missing_ok=True))
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        self._write("samples", lambda: write_text(self.run_dir / "samples" / f"{name}_{mode}.jsonl", lines))
        self._write("evaluation", lambda: write_json(self.run_dir / "evaluation" / f"{mode}.json", summary))
        low, high = summary["ci95"]
        numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        self.log({f"eval/{mode}/{key}": value for key, value in numbers.items()}, step)
        accuracy = "unknown" if summary["accuracy"] is None else f"{summary['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
        tqdm.write(f"{name} {mode}: accuracy {accuracy}, n {summary['n']}, {summary['seconds']:.0f} s")
        if official := [f"{key} {value:.3f}" for key, value in summary.items() if "/" in key and f"{key}_n" in summary]:
            tqdm.write(f"  official: {', '.join(official)}")

    def write_predictions(self, name: str, mode: str, data_set: str, predictions: dict[str, Any]) -> None:
        """What a data set's own evaluation reads."""
        if self.enabled:
            path = self.run_dir / "predictions" / f"{name}_{mode}.{data_set}.json"
            self._write("predictions", lambda: write_json(path, predictions))

    def log_thoughts(self, name: str, mode: str, content: bytes) -> None:
        """A file of an evaluation's thoughts, under the name of its samples."""
        if self.enabled:
            self._write("thoughts", lambda: write_bytes(self._thoughts(name, mode), content))

    def _thoughts(self, name: str, mode: str) -> Path:
        return self.run_dir / "thoughts" / f"{name}_{mode}.safetensors"

    def progress(self, total: int, description: str) -> "tqdm[NoReturn]":
        """A progress bar with the time left; in a file a line now and then, on other ranks nothing."""
        on_terminal = sys.stderr.isatty()
        return tqdm(
            total=total,
            desc=description,
            disable=not self.enabled,
            dynamic_ncols=on_terminal,
            mininterval=0.1 if on_terminal else _QUIET_SECONDS,
            maxinterval=10 if on_terminal else 4 * _QUIET_SECONDS,
        )

    def close(self) -> None:
        if self.enabled:
            self.metrics_file.close()
            if self.wandb_run is not None:
                self._guarded("finish", self.wandb_run.finish)

    def _keep_earlier_config(self, new: str) -> None:
        path = self.run_dir / "config.yaml"
        if path.exists() and path.read_text(encoding="utf-8") != new:
            path.rename(next(p for n in count(1) if not (p := path.with_name(f"config.{n}.yaml")).exists()))

    def _start_wandb(self, config: RunConfig) -> None:
        import wandb

        def start(mode: Literal["online", "offline", "disabled"]) -> "wandb.Run":
            return wandb.init(
                project=config.project,
                name=config.name,
                entity=config.wandb.entity,
                group=config.wandb.group,
                tags=config.wandb.tags,
                mode=mode,
                dir=self.run_dir,
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(
                    silent=True,
                    init_timeout=_WANDB_SECONDS,
                    finish_timeout=_WANDB_SECONDS,
                    finish_timeout_raises=True,
                ),
                id=self.wandb_id,
                resume="allow" if self.wandb_id else None,
            )

        later = f"logging offline; `wandb sync {self.run_dir / 'wandb' / 'offline-run-*'}` later"
        mode = config.wandb.mode
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            logger.warning("W&B: no login on this machine, %s", later)
            mode = "offline"
        try:
            self.wandb_run = start(mode)
        except Exception as error:
            if mode == "offline":
                raise
            logger.warning("W&B: could not start the run online (%s), %s", error, later)
            self.wandb_run = start("offline")
        self.wandb_id = self.wandb_run.id

    def _write(self, what: str, write: Callable[[], object]) -> None:
        """A full disk must not stop training between two checkpoints: what could not be written is said and lost."""
        try:
            write()
        except OSError as error:
            logger.warning("%s of %s could not be written: %s", what, self.run_dir, error)

    def _guarded(self, action: str, call: Any) -> None:
        """W&B must never stop a run: after its first failure it is left alone."""
        try:
            call()
        except Exception as error:
            logger.warning(
                "W&B: could not %s the run (%s); going on without it, metrics.jsonl is complete", action, error
            )
            self.wandb_run = None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision(source: Path) -> dict[str, Any] | None:
    """Commit and whether the checkout differs from it; None where git does not track the source file."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)  # site-packages may lie in another project's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None
