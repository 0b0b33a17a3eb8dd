"""What a study is made of: the runs that it asks for, in order of need."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from multicoco.config import RunConfig, load_config
from multicoco.config.evaluation import PUBLISHED_METHODS
from multicoco.errors import UserError
from multicoco.study.keys import StudySpec, read_study

# how a run is watched and where it lies, not what is trained
WATCHING = {
    *("project", "name", "output_dir", "use_run_name_in_output_dir"),
    *("tracking", "wandb", "log_every_steps", "num_workers", "report"),
}


@dataclass(frozen=True)
class Job:
    """A run of train.py: the training of an arm with a seed, or, with a test set, an evaluation of it.

    Attributes:
        start: the training from whose last checkpoint it starts, which must be done.
    """

    arm: str
    seed: int
    test: str | None
    folder: Path
    config: Path
    overrides: tuple[str, ...]
    start: "Job | None"

    @property
    def label(self) -> str:
        return f"{self.arm}/{self.seed}"

    @property
    def chain(self) -> "list[Job]":
        """Itself, what it starts from, and so on."""
        return [self, *(self.start.chain if self.start else [])]

    @property
    def name(self) -> str:
        return f"{self.label} {'training' if self.test is None else f'on {self.test}'}"


@dataclass(frozen=True)
class Study:
    """A checked study, and where it lies."""

    file: Path
    spec: StudySpec

    @property
    def folder(self) -> Path:
        return Path(self.spec.output_dir) / self.spec.name

    @property
    def results(self) -> Path:
        return self.folder / "study.json"

    def chain(self, arm: str) -> list[str]:
        """An arm, the one it starts from, and so on."""
        parent = self.spec.arms[arm].after
        return [arm, *(self.chain(parent) if parent else [])]

    @cached_property
    def jobs(self) -> list[Job]:
        """Everything to be done, a seed after the other, what others need first.

        Raises:
            UserError: a run config is not valid, or none of a study's.
        """
        arms = sorted(self.spec.arms, key=lambda arm: len(self.chain(arm)))
        jobs = []
        for seed in self.spec.seeds:
            trainings: dict[str | None, Job] = {}
            for arm in arms:
                training = self._training(arm, seed, trainings.get(self.spec.arms[arm].after))
                trainings[arm] = training
                jobs += [training, *self._evaluations(training)]
        return jobs

    def training_folder(self, arm: str, seed: int) -> Path:
        """Named after what is trained, so that a changed arm is another run and nothing of the earlier one is lost. By
        what differs from the defaults: a key that a later version brings makes no run another one."""
        arms = self.chain(arm)
        configs = [self.training_config(name).model_dump(mode="json", exclude_defaults=True) for name in arms]
        kept = [{key: value for key, value in config.items() if key not in WATCHING} for config in configs]
        return self.folder / f"{arm}-{_digest(kept)}" / f"seed_{seed}" / "train"

    def training_config(self, arm: str) -> RunConfig:
        """Without what a seed and the place add to it."""
        settings, parent = _settings({**self.spec.arms[arm].set, "name": "train"}), self.spec.arms[arm].after
        try:
            return self._load(arm, settings)
        except UserError:
            if parent is None:
                raise
        return self._load(arm, [*settings, f"load_model_path={parent}"])  # by which it begins with a later stage

    def config_of(self, job: Job) -> RunConfig:
        return self._load(job.arm, job.overrides)

    def _load(self, arm: str, overrides: Sequence[str]) -> RunConfig:
        try:
            return load_config(self._config(arm), overrides)
        except UserError as error:
            raise UserError(f"{self.file}: arm {arm}: {error}") from error

    def _config(self, arm: str) -> Path:
        return self.file.parent / (self.spec.arms[arm].config or self.spec.config or "")

    def _training(self, arm: str, seed: int, start: Job | None) -> Job:
        own: dict[str, Any] = {"seed": seed} | ({} if start is None else {"load_model_path": str(start.folder)})
        job = self._job(arm, seed, None, self.training_folder(arm, seed), own, start)
        config = self.config_of(job)
        wrong = {
            "mode must not be eval_only: an arm is trained": config.mode == "eval_only",
            "resume must be auto: the same command goes on with a run that was stopped": config.resume != "auto",
            "save_only_improve must be false: it is the last checkpoint that is asked": config.save_only_improve,
        }
        if problems := [sentence for sentence, is_so in wrong.items() if is_so]:
            raise UserError(f"{self.file}: arm {arm}: {'; '.join(problems)}")
        return job

    def _evaluations(self, training: Job) -> Iterator[Job]:
        method = self.config_of(training).trained_method
        asked: dict[str, Any] = {f"eval_config.{name}": False for name in PUBLISHED_METHODS}
        if self.spec.is_intervened(training.arm):
            asked["eval_config.interventions"] = self.spec.interventions
        begun: dict[str, Any] = {"mode": "eval_only", "method": method, "load_model_path": str(training.folder)}
        begun["eval_config.methods"] = []  # no part of the folder's name, which is older than this key
        for test, spec in self.spec.tests.items():
            folder = training.folder.with_name(f"{test}-{_digest({**spec.set, **asked})}")
            keys = {"seed": training.seed, **spec.set, **asked, **begun}
            yield self._job(training.arm, training.seed, test, folder, keys, training)

    def _job(self, arm: str, seed: int, test: str | None, folder: Path, keys: dict[str, Any], start: Job | None) -> Job:
        place = {"output_dir": str(folder.parent), "name": folder.name, "use_run_name_in_output_dir": True}
        overrides = (*_settings(self.spec.arms[arm].set), *_settings({**keys, **place}))
        job = Job(arm, seed, test, folder, self._config(arm), overrides, start)
        self.config_of(job)  # what is wrong with it is said before anything is trained
        return job


def load_study(file: Path) -> Study:
    """Reads STUDY.yaml.

    Raises:
        UserError: it is no study, or one of its run configs is not valid; before anything is written.
    """
    study = Study(file, read_study(file))
    assert study.jobs
    return study


def _settings(keys: dict[str, Any]) -> list[str]:
    """As train.py's --set takes them."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items()]


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]
