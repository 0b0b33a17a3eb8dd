"""A-OKVQA's two settings (Schwenk et al. 2022, arXiv:2206.01718; github.com/allenai/aokvqa, evaluation).

Multiple choice: the share of questions whose predicted text equals the right choice's. Direct answer: the mean over
questions of min(1, annotators who gave just this text / 3), questions that are marked as difficult for it left out.
Texts are compared as they are. An answer that could not be read counts as wrong.
"""

from collections.abc import Sequence
from typing import Any

from multicoco.data.example import Example
from multicoco.evaluation.answers import DIRECT_ANSWERS_FOR_FULL_CREDIT
from multicoco.evaluation.metrics.metric import Answered, Metric, Sample, mean


class AOKVQA(Metric):
    """Questions with choices are of the one setting, those that are asked without of the other."""

    def scores(self, answered: Sequence[Answered]) -> dict[str, tuple[float, int]]:
        """See `Metric.scores`: shares of 1, where the original prints percent."""
        choice = [
            float(_said(example, sample) == example.answer)
            for example, sample in answered
            if example.choices and example.answer is not None
        ]
        direct = [
            min(1.0, example.direct_answers.count(_said(example, sample)) / DIRECT_ANSWERS_FOR_FULL_CREDIT)
            for example, sample in answered
            if not example.choices and example.direct_answers and not _is_difficult(example)
        ]
        found = {"multiple_choice": mean(choice), "direct_answer": mean(direct)}
        return {name: score for name, score in found.items() if score is not None}

    def predictions(self, answered: Sequence[Answered]) -> dict[str, Any] | None:
        """{question_id: {"multiple_choice": text}}, or "direct_answer"; test questions too. "" was not read."""
        return {
            example.id: {"multiple_choice" if example.choices else "direct_answer": _said(example, sample)}
            for example, sample in answered
        }


def _said(example: Example, sample: Sample) -> str:
    """The predicted text: a choice's, or the answer as it was written; "" if none was read."""
    if sample["extracted"] is None:
        return ""
    text: str = example.choices[sample["extracted"]] if example.choices else sample["said"]
    return text


def _is_difficult(example: Example) -> bool:
    return example.groups.get("difficult_direct_answer") == "true"
