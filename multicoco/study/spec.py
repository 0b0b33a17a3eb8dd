"""What a study is made of: STUDY.yaml, checked, and the runs that it asks for, in order of need."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from multicoco.config import RunConfig, load_config, nearest
from multicoco.config.section import NonNegativeInt, OptionalStr, PathStr, Section
from multicoco.errors import UserError

Part = Literal["steps", "data", "weights"]
Role = Literal["hidden", "cot", "direct", "no_thoughts", "pause", "borrowed"]

# how a run is watched and where it lies, not what is trained
_WATCHING = {
    *("project", "name", "output_dir", "use_run_name_in_output_dir"),
    *("tracking", "wandb", "log_every_steps", "num_workers", "report"),
}

_OWN = {"seed", "name", "output_dir", "use_run_name_in_output_dir"}


def _folder(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError("must be the name of a folder, of letters, digits and . _ + -")
    return name


Name = Annotated[str, AfterValidator(_folder)]


class ArmSpec(Section):
    config: OptionalStr = Field(None, description="run config, relative to the study's file; null: the study's")
    set: dict[str, Any] = Field({}, description="keys of the run config that this arm sets")
    after: OptionalStr = Field(None, description="arm whose run of the same seed it starts from")
    role: Role | None = Field(None, description="in the reading rule; null: its name, if that is a role")
    intervened: bool = Field(False, description="the interventions are on its thoughts too")
    differs: list[Part] = Field([], description="what may differ from the arms that it is compared with")


class QuestionsSpec(Section):
    set: dict[str, Any] = Field(description="keys that name the questions, such as val_path")
    out_of_distribution: bool = Field(False, description="unlike the training data, on purpose")


class StudySpec(Section):
    name: Name = Field(description="name of the study, and of its folder")
    output_dir: PathStr = Field("runs/studies", description="folder of all studies")
    config: OptionalStr = Field(None, description="run config of the arms, relative to this file")
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)] = Field(description="each arm is trained with each")
    arms: Annotated[dict[Name, ArmSpec], Field(min_length=1)] = Field(description="what is compared")
    tests: Annotated[dict[Name, QuestionsSpec], Field(min_length=1)] = Field(
        description="sets of questions; the reading rule looks at the first one in distribution"
    )
    interventions: list[str] = Field([], description="on the thoughts of the hidden arm and of those intervened")
    margin: float = Field(0.02, gt=0, lt=1, description="accuracies that differ by less tie in the reading rule")

    @model_validator(mode="after")
    def _check_arms(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is listed twice")
        if all(test.out_of_distribution for test in self.tests.values()):
            raise ValueError("tests: one must be in distribution")
        for name, arm in self.arms.items():
            if arm.config is None and self.config is None:
                raise ValueError(f"arms.{name}: neither it nor the study names a config")
            if arm.after is not None and arm.after not in self.arms:
                meant = nearest(arm.after, self.arms)
                hint = f"did you mean {meant}?" if meant else f"there are {', '.join(self.arms)}"
                raise ValueError(f"arms.{name}: there is no arm {arm.after!r} to start from; {hint}")
            if taken := _OWN & arm.set.keys():
                raise ValueError(f"arms.{name}.set: {sorted(taken)[0]} is the study's to set: leave it out")
            if arm.after is not None and "load_model_path" in arm.set:
                raise ValueError(f"arms.{name}: load_model_path and after are two beginnings: leave one out")
            chain = [name]
            while (parent := self.arms[chain[-1]].after) is not None:
                if parent in chain:
                    raise ValueError(f"arms.{name}: after goes in a circle: {' -> '.join([*chain, parent])}")
                chain.append(parent)
        roles = [role for name in self.arms if (role := self.role(name))]
        if twice := [role for role in roles if roles.count(role) > 1]:
            raise ValueError(f"arms: two have the role {twice[0]}")
        return self

    def role(self, arm: str) -> str | None:
        return self.arms[arm].role or (arm if arm in Role.__args__ else None)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Job:
    """A run of train.py: the training of an arm with a seed, or, with a test set, an evaluation of it.

    Attributes:
        needs: the folders of the runs that must be done.
    """

    arm: str
    seed: int
    test: str | None
    folder: Path
    config: Path
    overrides: tuple[str, ...]
    needs: tuple[Path, ...]

    @property
    def label(self) -> str:
        return f"{self.arm}/{self.seed}"

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

    def chain(self, arm: str) -> list[str]:
        """An arm, the one it starts from, and so on."""
        parent = self.spec.arms[arm].after
        return [arm, *(self.chain(parent) if parent else [])]

    @cached_property
    def jobs(self) -> list[Job]:
        """Everything to be done, a seed after the other, what others need first.

        Raises:
            UserError: a run config is not valid.
        """
        arms = sorted(self.spec.arms, key=lambda arm: len(self.chain(arm)))
        return [job for seed in self.spec.seeds for arm in arms for job in self._jobs(arm, seed)]

    def training_folder(self, arm: str, seed: int) -> Path:
        """Named after what is trained, so that a changed arm is another run and nothing of the earlier one is lost. By
        what differs from the defaults: a key that a later version brings makes no run another one."""
        arms = self.chain(arm)
        configs = [self.training_config(name).model_dump(mode="json", exclude_defaults=True) for name in arms]
        kept = [{key: value for key, value in config.items() if key not in _WATCHING} for config in configs]
        return self.folder / f"{arm}-{_digest(kept)}" / f"seed_{seed}" / "train"

    def training_config(self, arm: str) -> RunConfig:
        """Without what a seed and the place add to it."""
        return self._load(arm, _settings({**self.spec.arms[arm].set, "name": "train"}))

    def _load(self, arm: str, overrides: Sequence[str]) -> RunConfig:
        try:
            return load_config(self._config(arm), overrides)
        except UserError as error:
            raise UserError(f"{self.file}: arm {arm}: {error}") from error

    def _config(self, arm: str) -> Path:
        return self.file.parent / (self.spec.arms[arm].config or self.spec.config or "")

    def _jobs(self, arm: str, seed: int) -> Iterator[Job]:
        spec, folder = self.spec.arms[arm], self.training_folder(arm, seed)
        keys = {**spec.set, "seed": seed}
        needs: tuple[Path, ...] = ()
        if spec.after is not None:
            needs = (self.training_folder(spec.after, seed),)
            keys["load_model_path"] = str(needs[0])
        training = self._job(arm, seed, None, folder, keys, needs)
        yield training
        method = self._load(arm, training.overrides).trained_method
        for test, of_test in self.spec.tests.items():
            asked: dict[str, Any] = {f"eval_config.{name}": False for name in ("cot", "coconut", "vanilla")}
            if (self.spec.role(arm) == "hidden" or spec.intervened) and self.spec.interventions:
                asked["eval_config.interventions"] = self.spec.interventions
            to_evaluate = {"mode": "eval_only", "method": method, "load_model_path": str(folder)}
            keys = {**spec.set, "seed": seed, **of_test.set, **asked, **to_evaluate}
            place = folder.with_name(f"{test}-{_digest({**of_test.set, **asked})}")
            yield self._job(arm, seed, test, place, keys, (folder,))

    def _job(
        self, arm: str, seed: int, test: str | None, folder: Path, keys: dict[str, Any], needs: tuple[Path, ...]
    ) -> Job:
        place = {"output_dir": str(folder.parent), "name": folder.name, "use_run_name_in_output_dir": True}
        overrides = tuple(_settings({**keys, **place}))
        self._load(arm, overrides)  # what is wrong with it is said before anything is trained
        return Job(arm, seed, test, folder, self._config(arm), overrides, needs)


def load_study(file: Path) -> Study:
    """Reads STUDY.yaml.

    Raises:
        UserError: it is no study, or one of its run configs is not valid; before anything is written.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read as a study: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: a study is a mapping of keys to values, with name, seeds, arms and tests")
    try:
        study = Study(file, StudySpec.model_validate(content))
    except ValidationError as error:
        problems = [_describe(problem["loc"], problem["msg"]) for problem in error.errors()]
        raise UserError("\n  ".join([f"{file} is not a valid study:", *problems])) from error
    assert study.jobs
    return study


def _describe(place: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Extra inputs are not permitted", "is no key of a study")
    return ": ".join(filter(None, [".".join(map(str, place)), message.replace("Input should be", "must be")]))


def _settings(keys: dict[str, Any]) -> list[str]:
    """As train.py's --set takes them."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items()]


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]
