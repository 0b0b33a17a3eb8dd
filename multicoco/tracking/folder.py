"""What a run leaves in its folder.

<run folder>/config.yaml            resolved; an earlier, different one is kept as config.1.yaml, ...
<run folder>/environment.json       git revision, versions, hardware, host, command
<run folder>/starts.jsonl           the same of every start, one a line
<run folder>/metrics.jsonl          one object a line; a value that is not finite is null
<run folder>/samples/<name>.jsonl   one generated answer a line
<run folder>/thoughts/<name>.safetensors  what is in the thoughts of these, if that is asked for
<run folder>/evaluation/<mode>.json summary of the newest evaluation in a mode
<run folder>/predictions/<name>_<mode>.<data set>.json  as the data set's own evaluation reads them
"""

import json
import logging
import math
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from multicoco.config import RunConfig
from multicoco.errors import UserError
from multicoco.files import sweep, write_bytes, write_json, write_text
from multicoco.tracking.sink import Evaluation, Sink

logger = logging.getLogger(__name__)


class RunFolder(Sink):
    """A full disk must not stop training between two checkpoints: what cannot be written is said, once until it can be
    again, and lost.

    Raises:
        UserError: the folder cannot be written.
    """

    title: ClassVar[str] = "run folder"

    def __init__(self, run_dir: Path, config: RunConfig, environment: dict[str, Any]):
        self.run_dir = run_dir
        self._failing: set[str] = set()
        try:
            self._keep_earlier_config(config.to_yaml())
            write_text(run_dir / "config.yaml", config.to_yaml())
            write_json(run_dir / "environment.json", environment)
            for folder in (run_dir, *filter(Path.is_dir, run_dir.iterdir())):
                sweep(folder)
            with (run_dir / "starts.jsonl").open("a", encoding="utf-8") as file:
                print(json.dumps(environment), file=file)
            self.metrics_file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"run folder {run_dir} cannot be written ({error}): set another output_dir or name"
            ) from error

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """One line of metrics.jsonl, with the step and the time in unix seconds."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        line = json.dumps({"step": step, "time": time.time(), **finite})
        self._write("metrics.jsonl", lambda: print(line, file=self.metrics_file, flush=True))

    def log_evaluation(self, evaluation: Evaluation, step: int) -> None:
        """Its samples and summary. Thoughts that belonged to earlier samples of the name are gone."""
        name, mode = evaluation.name, evaluation.mode
        self._write("thoughts", lambda: self._thoughts(name, mode).unlink(missing_ok=True))
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in evaluation.samples)
        self._write("samples", lambda: write_text(self.run_dir / "samples" / f"{name}_{mode}.jsonl", lines))
        self._write("evaluation", lambda: write_json(self.run_dir / "evaluation" / f"{mode}.json", evaluation.summary))

    def write_predictions(self, name: str, mode: str, data_set: str, predictions: dict[str, Any]) -> None:
        path = self.run_dir / "predictions" / f"{name}_{mode}.{data_set}.json"
        self._write("predictions", lambda: write_json(path, predictions))

    def write_thoughts(self, name: str, mode: str, content: bytes) -> None:
        self._write("thoughts", lambda: write_bytes(self._thoughts(name, mode), content))

    def close(self) -> None:
        self._write("metrics.jsonl", self.metrics_file.close)

    def _thoughts(self, name: str, mode: str) -> Path:
        return self.run_dir / "thoughts" / f"{name}_{mode}.safetensors"

    def _keep_earlier_config(self, new: str) -> None:
        path = self.run_dir / "config.yaml"
        if path.exists() and path.read_text(encoding="utf-8") != new:
            path.rename(next(p for n in count(1) if not (p := path.with_name(f"config.{n}.yaml")).exists()))

    def _write(self, what: str, write: Callable[[], object]) -> None:
        try:
            write()
            self._failing.discard(what)
        except OSError as error:
            if what not in self._failing:
                logger.warning("%s of %s could not be written: %s", what, self.run_dir, error)
            self._failing.add(what)
