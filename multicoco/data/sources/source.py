"""What the reader asks of a source: whether a record has its form, and the record as an example."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from multicoco.config.data import StepsFrom
from multicoco.data.example import Example

Record = dict[str, Any]  # a JSON object

ID_KEYS = ("question_id", "id", "idx")  # the first one that says something; without any, the place in the file


@dataclass(frozen=True)
class Source(ABC):
    """One form of records. A subclass is all that a new form needs, with its line in `multicoco.registry`.

    Attributes:
        keys: the keys of a record that `parse` reads. A record with another key that looks like a part of the
            question is refused; other keys beside these are taken for metadata.
        metric: the name of the data set's own evaluation (`multicoco.registry`), if it has one.
        image_dir: absolute; the images' paths are relative to it.
        steps_from: what of a written reasoning is a step (`steps.split_reasoning`).
    """

    keys: ClassVar[frozenset[str]]
    metric: ClassVar[str | None] = None
    image_dir: Path
    steps_from: StepsFrom

    @classmethod
    @abstractmethod
    def matches(cls, record: Record) -> bool:
        """Whether a record has this form, judged by its keys, for any JSON object."""

    @abstractmethod
    def parse(self, record: Record, record_id: str) -> Example:
        """The record as an example, with `judge` as the data set's answers are to be compared.

        Raises:
            UserError: with the reason alone; the reader names file and record.
        """
