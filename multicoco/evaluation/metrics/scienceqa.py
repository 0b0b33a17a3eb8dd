"""ScienceQA's accuracies (Lu et al. 2022, arXiv:2209.09513; github.com/lupantech/ScienceQA, tools/evaluate_acc.py).

The share of questions whose predicted index is the right one: of all, by subject (natural, social, language science:
NAT, SOC, LAN in its tables), by context (with a text, with an image, with neither: TXT, IMG, NO; a question with text
and image is of both), by grade (1 to 6, 7 to 12) and by topic ("biology"). A group that no question is of is left out.
An answer that could not be read counts as wrong.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from multicoco.evaluation.metrics.metric import Answered, Metric, mean

_Groups = Mapping[str, str]


def _grade(groups: _Groups) -> int:
    digits = groups.get("grade", "").removeprefix("grade")
    return int(digits) if digits.isdecimal() else 0


_IS_IN: dict[str, Callable[[_Groups], bool]] = {
    "average": lambda groups: True,
    "natural": lambda groups: groups.get("subject") == "natural science",
    "social": lambda groups: groups.get("subject") == "social science",
    "language": lambda groups: groups.get("subject") == "language science",
    "has_text": lambda groups: groups["has_text"] == "true",
    "has_image": lambda groups: groups["has_image"] == "true",
    "no_context": lambda groups: groups["has_text"] == groups["has_image"] == "false",
    "grade_1_6": lambda groups: 1 <= _grade(groups) <= 6,
    "grade_7_12": lambda groups: 7 <= _grade(groups) <= 12,
}


class ScienceQA(Metric):
    """By the groups that `data.sources.scienceqa` gives."""

    def scores(self, answered: Sequence[Answered]) -> dict[str, tuple[float, int]]:
        """See `Metric.scores`: shares of 1, where the original prints percent."""
        known = [
            (example.groups, float(sample["extracted"] == example.answer_index))
            for example, sample in answered
            if example.answer_index is not None
        ]
        found = {name: mean([right for groups, right in known if is_in(groups)]) for name, is_in in _IS_IN.items()}
        for topic in sorted({groups["topic"] for groups, _ in known if "topic" in groups}):
            found[topic] = mean([right for groups, right in known if groups.get("topic") == topic])
        return {name: score for name, score in found.items() if score is not None}

    def predictions(self, answered: Sequence[Answered]) -> dict[str, Any] | None:
        """{"results": {id: index}}, its program's `--result_file`; -1, which is no choice, was not read."""
        found = ((example, sample["extracted"]) for example, sample in answered)
        return {"results": {example.id: -1 if index is None else index for example, index in found}}
