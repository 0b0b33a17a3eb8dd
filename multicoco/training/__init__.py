"""Training: stages, epochs and steps on DeepSpeed, an evaluation and a checkpoint after each epoch."""

from collections.abc import Collection

from multicoco.config import RunConfig
from multicoco.evaluation.run import EvaluationRun
from multicoco.training.trainer import Trainer


def build_run(config: RunConfig, allow_change: Collection[str] = ()) -> Trainer | EvaluationRun:
    """What a run config asks for; its `run` does it. Arguments and errors as of `Trainer`."""
    return EvaluationRun(config) if config.mode == "eval_only" else Trainer(config, allow_change)
