"""By which a run tells what it does: to its folder, to what else its config names, and to the terminal."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from multicoco.config import RunConfig
from multicoco.errors import UserError
from multicoco.tracking.folder import RunFolder
from multicoco.tracking.machine import environment
from multicoco.tracking.sink import Evaluation, Pictures, Sink
from multicoco.tracking.tensorboard import TensorBoard
from multicoco.tracking.wandb import WandbRun

logger = logging.getLogger(__name__)

_QUIET_SECONDS = 15  # between lines of a progress bar that goes to a file


class Tracker:
    """Passes a run's records on to its sinks. Only rank 0's is enabled; the others' do nothing.

    Args:
        wandb_id: of the W&B run to go on with, None for a new one.
        next_step: from which on the run logs.

    Attributes:
        environment: what `environment()` gave at the start; empty where disabled.

    Raises:
        UserError: the run folder cannot be written, or a sink is not installed.
    """

    def __init__(
        self, run_dir: Path, config: RunConfig, wandb_id: str | None = None, enabled: bool = True, next_step: int = 0
    ):
        self.enabled = enabled
        self.wandb_id = wandb_id
        self.environment = environment() if enabled else {}
        self.sinks: list[Sink] = []
        if not enabled:
            return
        self.folder = RunFolder(run_dir, config, self.environment)
        self.sinks.append(self.folder)
        if "tensorboard" in config.tracking:
            self._open(TensorBoard, lambda: TensorBoard(run_dir, next_step))
        if "wandb" in config.tracking:
            self._open(WandbRun, lambda: WandbRun(run_dir, config, wandb_id))
        self.wandb_id = next((sink.id for sink in self.sinks if isinstance(sink, WandbRun)), wandb_id)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Numbers of an optimizer step."""
        self._tell("log to", lambda sink: sink.log(metrics, step))

    def log_evaluation(
        self,
        name: str,
        mode: str,
        summary: dict[str, Any],
        samples: list[dict[str, Any]],
        step: int,
        pictures: Pictures,
    ) -> None:
        """An evaluation's summary and samples; see `Evaluation`."""
        if not self.enabled:
            return
        evaluation = Evaluation(name, mode, summary, samples, pictures)
        self._tell("log to", lambda sink: sink.log_evaluation(evaluation, step))
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
            self.folder.write_predictions(name, mode, data_set, predictions)

    def log_thoughts(self, name: str, mode: str, content: bytes) -> None:
        """A file of an evaluation's thoughts, under the name of its samples."""
        if self.enabled:
            self.folder.write_thoughts(name, mode, content)

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
        self._tell("finish", lambda sink: sink.close())

    def _open(self, kind: type[Sink], make: Callable[[], Sink]) -> None:
        try:
            self.sinks.append(make())
        except UserError:
            raise
        except Exception as error:
            _say(kind, "start", error)

    def _tell(self, action: str, tell: Callable[[Sink], None]) -> None:
        """No sink may stop a run: after its first failure it is left alone."""
        for sink in [*self.sinks]:
            try:
                tell(sink)
            except Exception as error:
                _say(type(sink), action, error)
                self.sinks.remove(sink)


def _say(kind: type[Sink], action: str, error: Exception) -> None:
    logger.warning(
        "%s: could not %s the run (%s); going on without it, metrics.jsonl is complete", kind.title, action, error
    )
