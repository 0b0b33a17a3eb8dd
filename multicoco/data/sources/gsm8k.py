"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168) as released: question, answer ("one step a line ... #### 72")."""

from multicoco.config.data import Judge
from multicoco.data.example import Example
from multicoco.data.numbers import single_number
from multicoco.data.sources import fields
from multicoco.data.sources.source import ID_KEYS, Record, Source

_MARK = "####"


class GSM8K(Source):
    """The steps are the lines before the mark; what follows it is judged as a number."""

    keys = frozenset({*ID_KEYS, "question", "answer"})

    metric = "gsm8k"

    @classmethod
    def matches(cls, record: Record) -> bool:
        """By the mark in the answer of a record without steps."""
        return "question" in record and "steps" not in record and _MARK in str(record.get("answer"))

    def parse(self, record: Record, record_id: str) -> Example:
        """See `Source.parse`."""
        question = fields.text(record.get("question"), "question")
        written, _, final = fields.text(record.get("answer"), "answer").rpartition(_MARK)
        answer = fields.text(final, f"answer after {_MARK}")
        steps = fields.texts(written.splitlines(), "answer")
        judge: Judge = "text" if single_number(answer) is None else "number"
        return Example(record_id, question, (), (), steps, answer, None, judge=judge)
