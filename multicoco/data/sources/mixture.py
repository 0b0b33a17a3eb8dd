"""Mixtures of data sets: a YAML file that lists them, each with its weight.

    - {path: aokvqa_v1p0_train.json, image_dir: coco, weight: 2}
    - {path: "hf://LightChen2333/M3CoT?split=train", weight: 0.5}

A weight says how often a record is in an epoch: 2 is twice; with 0.5 every second record is taken, the same ones in
every epoch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from multicoco.config.schema import Columns
from multicoco.config.section import OptionalPath, OptionalStr, PathStr, Section
from multicoco.data.example import Example
from multicoco.data.sources.location import Location, locate
from multicoco.data.sources.source import StepsFrom
from multicoco.errors import UserError


class Part(Section):
    """One set of a mixture. What is null is as the run's config says."""

    path: PathStr = Field(min_length=1)
    weight: float = Field(1.0, gt=0, le=1000)
    image_dir: OptionalPath = None
    source: OptionalStr = None
    columns: Columns | None = None
    steps_from: StepsFrom | None = None
    answer_type: Literal["text", "number"] | None = None
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


def weighted(examples: Sequence[Example], weight: float) -> list[Example]:
    """Whole copies, then the rest evenly spaced; copies after the first have ids of their own ("x*2")."""
    exact = Fraction(str(weight))
    copies, rest = int(exact), exact % 1
    n_rest = int(rest * len(examples) + Fraction(1, 2))
    if copies == 0:
        n_rest = max(n_rest, 1)  # a set that is listed is not left out
    picked = list(enumerate([examples] * copies + [_evenly(examples, n_rest)], start=1))
    return [replace(e, id=f"{e.id}*{copy}") if copy > 1 else e for copy, some in picked for e in some]


def _evenly(examples: Sequence[Example], n: int) -> list[Example]:
    return [examples[place * len(examples) // n] for place in range(n)]


def with_own_ids(examples: Iterable[Example]) -> list[Example]:
    """Where several share an id, the second one's is "id#2"."""
    taken: set[str] = set()
    seen: dict[str, int] = {}
    own = []
    for example in examples:
        unique = example.id
        while unique in taken:
            seen[example.id] = seen.get(example.id, 1) + 1
            unique = f"{example.id}#{seen[example.id]}"
        taken.add(unique)
        own.append(example if unique == example.id else replace(example, id=unique))
    return own
