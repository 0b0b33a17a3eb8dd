"""STUDY.yaml: its keys, and what of them contradicts itself."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from multicoco.config import nearest
from multicoco.config.content import read_file
from multicoco.config.evaluation import PUBLISHED_METHODS
from multicoco.config.section import NonNegativeInt, OptionalStr, PathStr, Section
from multicoco.errors import UserError
from multicoco.interventions import parse, split_specs

Part = Literal["steps", "data", "weights"]
Role = Literal["hidden", "cot", "direct", "no_thoughts", "pause", "borrowed"]

_OWN = {"seed", "resume", "name", "output_dir", "use_run_name_in_output_dir"}
_OF_QUESTIONS = {
    *("val_path", "max_val_samples", "data_dir", "image_dir", "source", "columns", "steps_from", "on_bad_record"),
    *("answer_format", "answer_type", "direct_answers", "direct_instruction", "reasoning_instruction", "prompt_date"),
    *("max_image_tiles", "features", "features_dir", "generation", "eval_config"),
    *("eval_batch_size", "num_workers", "kernel", "deepspeed", "log_every_steps", "tracking", "wandb", "report"),
}
_OF_EVERY_EVALUATION = {f"eval_config.{name}" for name in (*PUBLISHED_METHODS, "methods", "interventions")}


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
    def _check(self) -> Self:
        for problem in (*self._problems(), *self._problems_of_arms(), *self._problems_of_interventions()):
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        if len(set(self.seeds)) < len(self.seeds):
            yield "seeds: one is listed twice"
        if all(test.out_of_distribution for test in self.tests.values()):
            yield "tests: one must be in distribution"
        for name, test in self.tests.items():
            keys = list(_dotted(test.set))
            if taken := [key for key in keys if key in _OF_EVERY_EVALUATION]:
                yield f"tests.{name}.set: {taken[0]} is the study's to set, arms are asked as trained: leave it out"
            if others := [key for key in keys if key.partition(".")[0] not in _OF_QUESTIONS]:
                yield f"tests.{name}.set: {others[0]} is not about questions or how they are asked: set it in arms"

    def _problems_of_arms(self) -> Iterator[str]:
        for name, arm in self.arms.items():
            if arm.config is None and self.config is None:
                yield f"arms.{name}: neither it nor the study names a config"
            if arm.after is not None and arm.after not in self.arms:
                meant = nearest(arm.after, self.arms)
                hint = f"did you mean {meant}?" if meant else f"there are {', '.join(self.arms)}"
                yield f"arms.{name}: there is no arm {arm.after!r} to start from; {hint}"
                return
            if taken := _OWN & arm.set.keys():
                yield f"arms.{name}.set: {sorted(taken)[0]} is the study's to set: leave it out"
            if arm.after is not None and "load_model_path" in arm.set:
                yield f"arms.{name}: load_model_path and after are two beginnings: leave one out"
        for name in self.arms:
            chain = [name]
            while (parent := self.arms[chain[-1]].after) is not None:
                if parent in chain:
                    yield f"arms.{name}: after goes in a circle: {' -> '.join([*chain, parent])}"
                    return
                chain.append(parent)
        roles = [role for name in self.arms if (role := self.role(name))]
        if twice := [role for role in roles if roles.count(role) > 1]:
            yield f"arms: two have the role {twice[0]}"

    def _problems_of_interventions(self) -> Iterator[str]:
        for spec in split_specs(self.interventions):
            try:
                parse(spec)
            except ValueError as error:
                yield f"interventions: {error}"
        if self.interventions and not any(map(self.is_intervened, self.arms)):
            yield (
                "interventions: there is no arm on whose thoughts they are made: give `role: hidden` to the one with "
                "hidden thoughts, or `intervened: true` to others"
            )

    def role(self, arm: str) -> str | None:
        return self.arms[arm].role or (arm if arm in Role.__args__ else None)  # type: ignore[attr-defined]

    def is_intervened(self, arm: str) -> bool:
        return bool(self.interventions) and (self.role(arm) == "hidden" or self.arms[arm].intervened)


def read_study(file: Path) -> StudySpec:
    """Reads STUDY.yaml, in the YAML of run configs.

    Raises:
        UserError: it is no study; with all wrong keys.
    """
    content, _ = read_file(file, "study", run_key=lambda key: key.partition(".set.")[2])
    try:
        return StudySpec.model_validate(content)
    except ValidationError as error:
        problems = [_describe(problem["loc"], problem["msg"]) for problem in error.errors()]
        raise UserError("\n  ".join([f"{file} is not a valid study:", *problems])) from error


def _describe(place: Iterable[int | str], message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Extra inputs are not permitted", "is no key of a study")
    return ": ".join(filter(None, [".".join(map(str, place)), message.replace("Input should be", "must be")]))


def _dotted(keys: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of sections too, as `section.key`."""
    for key, value in keys.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
