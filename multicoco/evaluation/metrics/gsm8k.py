"""GSM8K's answers (Cobbe et al. 2021, arXiv:2110.14168), by two rules that publications use.

number_match: the number that was read equals the right one, however it is written: "1,234" is 1234, "$5" and "5.0" are
5. string_match: that of Coconut's code: what stands as the answer, without commas, is the right answer's text without
commas; so "5.0", "$5" and "5 clips" are not "5". The authors' own compares texts as well, but of what stands there only
the digits it begins with: "5 clips" is "5" to it, "5.0" and "$5" are not. An answer that could not be read is wrong.
"""

from collections.abc import Sequence

from multicoco.evaluation.answers import is_correct
from multicoco.evaluation.metrics.metric import Answered, Metric, mean


class GSM8K(Metric):
    """Both rules."""

    def scores(self, answered: Sequence[Answered]) -> dict[str, tuple[float, int]]:
        """See `Metric.scores`."""
        known = [(example, sample) for example, sample in answered if example.answer is not None]
        numbers = [float(bool(is_correct(sample["extracted"], example))) for example, sample in known]
        strings = [float(_bare(sample["said"]) == _bare(example.answer)) for example, sample in known]
        found = {"number_match": mean(numbers), "string_match": mean(strings)}
        return {name: score for name, score in found.items() if score is not None}


def _bare(text: str | None) -> str | None:
    return None if text is None else text.replace(",", "").strip()
