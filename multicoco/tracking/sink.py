"""A place that what a run tells of itself goes to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

Pictures = Callable[[int], Sequence[Image.Image]]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of all questions.

    Attributes:
        name: tells the samples of a run's evaluations apart.
        mode: how they were asked.
        samples: one a question.
        pictures: of a question, by its place among the samples.
    """

    name: str
    mode: str
    summary: dict[str, Any]
    samples: Sequence[dict[str, Any]]
    pictures: Pictures


class Sink:
    """One of these places; what is raised while a run goes on is said once, and the run goes on without it.

    Attributes:
        title: for messages.
    """

    title: ClassVar[str]

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Numbers of an optimizer step; a call may follow with more of the same step."""

    def log_evaluation(self, evaluation: Evaluation, step: int) -> None:
        """What else is kept of an evaluation: its numbers are logged as all others are."""

    def close(self) -> None:
        """After the last of them."""
