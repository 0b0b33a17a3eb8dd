"""Mixtures of data sets: a YAML file that lists them, each with its weight.

    - {path: aokvqa_v1p0_train.json, image_dir: coco, weight: 2}
    - {path: "hf://LightChen2333/M3CoT?split=train", weight: 0.5}

A weight says how often a record is in an epoch: 2 is twice; with 0.5 every second record is taken, the same ones in
every epoch.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from multicoco.config.columns import Columns
from multicoco.config.data import Judge, StepsFrom
from multicoco.config.section import OptionalPath, OptionalStr, PathStr, Section
from multicoco.data.example import Example
from multicoco.data.sources.ids import numbered, numbers_of
from multicoco.data.sources.location import Location, locate
from multicoco.errors import UserError


class Part(Section):
    """One set of a mixture. What is null is as the run's config says."""

    path: PathStr = Field(min_length=1)
    weight: float = Field(1.0, gt=0, le=1000)
    image_dir: OptionalPath = None
    source: OptionalStr = None
    columns: Columns | None = None
    steps_from: StepsFrom | None = None
    answer_type: Judge | None = None
    direct_answers: bool | None = None

    def location(self, folder: Path) -> Location:
        """Relative to the mixture's folder."""
        return locate(folder, self.path)


def read_parts(location: Location) -> list[Part]:
    """The sets that a mixture lists.

    Raises:
        UserError: it cannot be read, lists nothing, or one of its sets is not as it should be; names it and the key.
    """
    try:
        listed = yaml.safe_load(Path(location.place).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{location}: cannot be read ({error.strerror}): give the path of a mixture") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{location}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{location}: a mixture is a list of data sets: - {{path: train.json, weight: 1}}")
    parts = []
    for place, entry in enumerate(listed):
        try:
            part = Part.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "it"
            raise UserError(
                f"{location}: data set {place}: {key}: {first['msg']}; the keys are {', '.join(Part.model_fields)}"
            ) from error
        if part.location(Path(location.place).parent).is_mixture:
            raise UserError(f"{location}: data set {place}: {part.path} is a mixture itself: list its data sets here")
        parts.append(part)
    return parts


class Copies(NamedTuple):
    """Of each example of a mixture's set, as often as it is there: its place in the set, and which of its copies it is,
    from 1 on."""

    places: NDArray[np.int64]
    numbers: NDArray[np.int32]


def copies_of(n: int, weight: float) -> Copies:
    """Of n examples, whole copies, then the rest evenly spaced."""
    exact = Fraction(str(weight))
    whole, rest = int(exact), exact % 1
    n_rest = int(rest * n + Fraction(1, 2))
    if whole == 0:
        n_rest = max(n_rest, 1)  # a set that is listed is not left out
    each = [*[np.arange(n)] * whole, np.arange(n_rest) * n // max(n_rest, 1)]
    numbers = np.repeat(np.arange(1, whole + 2, dtype=np.int32), [len(places) for places in each])
    return Copies(np.concatenate(each), numbers)


def copy_id(name: str, number: int) -> str:
    """Copies after the first have ids of their own ("x*2")."""
    return f"{name}*{number}" if number > 1 else name


def weighted(examples: Sequence[Example], weight: float) -> list[Example]:
    """Each as often as its weight says."""
    places, numbers = copies_of(len(examples), weight)
    copied = [(examples[place], number) for place, number in zip(places.tolist(), numbers.tolist(), strict=True)]
    return [replace(e, id=copy_id(e.id, number)) if number > 1 else e for e, number in copied]


def with_own_ids(examples: Sequence[Example]) -> list[Example]:
    """With ids that are all different."""
    numbers = numbers_of(example.id for example in examples)
    pairs = zip(examples, numbers, strict=True)
    return [replace(e, id=numbered(e.id, number)) if number > 1 else e for e, number in pairs]
