"""Weights & Biases."""

import logging
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from multicoco.config import RunConfig
from multicoco.tracking.sink import Evaluation, Sink

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

SECONDS = 60  # that a run waits, at its start and at its end, for a server that does not answer
_SIDE = 512  # pixels, the most of a picture in a table


class WandbRun(Sink):
    """A run of W&B's, and of each evaluation as trained a table of its first samples with their pictures.

    Args:
        earlier: the id of the run to go on with, None for a new one.

    Attributes:
        id: of the run.
    """

    title: ClassVar[str] = "W&B"

    def __init__(self, run_dir: Path, config: RunConfig, earlier: str | None):
        self.run_dir, self.config, self.earlier = run_dir, config, earlier
        self.run = self._start()
        self.id = self.run.id

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.run.log(metrics, step=step)

    def log_evaluation(self, evaluation: Evaluation, step: int) -> None:
        samples = evaluation.samples[: self.config.wandb.samples]
        if not samples or "intervention" in evaluation.summary:
            return
        self.run.log({f"samples/{evaluation.mode}": _table(evaluation, samples)}, step=step)

    def close(self) -> None:
        self.run.finish()

    def _start(self) -> "wandb.Run":
        import wandb

        later = f"logging offline; `wandb sync {self.run_dir / 'wandb' / 'offline-run-*'}` later"
        mode = self.config.wandb.mode
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            logger.warning("W&B: no login on this machine, %s", later)
            mode = "offline"
        try:
            return self._init(mode)
        except Exception as error:
            if mode == "offline":
                raise
            logger.warning("W&B: could not start the run online (%s), %s", error, later)
            return self._init("offline")

    def _init(self, mode: Literal["online", "offline", "disabled"]) -> "wandb.Run":
        import wandb

        config = self.config
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
                silent=True, init_timeout=SECONDS, finish_timeout=SECONDS, finish_timeout_raises=True
            ),
            id=self.earlier,
            resume="allow" if self.earlier else None,
        )


def _table(evaluation: Evaluation, samples: Sequence[dict[str, Any]]) -> "wandb.Table":
    import wandb

    of_samples = []
    for place in range(len(samples)):
        pictures = [image.copy() for image in evaluation.pictures(place)]
        for picture in pictures:
            picture.thumbnail((_SIDE, _SIDE))
        of_samples.append([wandb.Image(picture) for picture in pictures])
    columns = [*zip_longest(*of_samples)]  # one a picture of the sample that has the most
    texts = ("id", "question", "choices", "generated", "extracted", "gold", "correct", "new_tokens", "latent_tokens")
    names: list[str | int] = [texts[0], *(f"picture {n}" for n in range(1, len(columns) + 1)), *texts[1:]]
    table = wandb.Table(columns=names)
    for place, sample in enumerate(samples):
        first, *others = (_cell(sample, name) for name in texts)
        table.add_data(first, *(column[place] for column in columns), *others)
    return table


def _cell(sample: dict[str, Any], name: str) -> Any:
    value, choices = sample.get(name), sample.get("choices") or []
    if name == "choices":
        return ", ".join(map(str, choices))
    if name in ("extracted", "gold"):  # an index, or a text
        return choices[value] if isinstance(value, int) and choices else None if value is None else str(value)
    return value
