"""Records of question, steps, answer, and optionally image or images and choices: ProsQA, GSM8K-Aug and their like.

The Coconut authors' files have this form (github.com/facebookresearch/coconut); so do exports of most other data sets.
"""

from typing import Any

from multicoco.config.data import Judge
from multicoco.data.example import Example
from multicoco.data.sources import fields
from multicoco.data.sources.source import ID_KEYS, Record, Source
from multicoco.data.sources.steps import split_reasoning
from multicoco.errors import UserError


class Records(Source):
    """Listed steps are kept as they are, a text is split. An answer is the text of a choice or its index; without
    choices, a text or number."""

    keys = frozenset({*ID_KEYS, "question", "steps", "answer", "image", "images", "choices"})

    @classmethod
    def matches(cls, record: Record) -> bool:
        """By a question and an answer, whatever else there is."""
        return "question" in record and "answer" in record

    def parse(self, record: Record, record_id: str) -> Example:
        """See `Source.parse`."""
        return fields.place_images(self._parse(record, record_id))

    def _parse(self, record: Record, record_id: str) -> Example:
        fields.required(record, "question", "answer")
        question = fields.text(record["question"], "question")
        images = fields.images_of(record, self.image_dir)
        listed = record.get("choices") or []
        choices = () if listed == [] else fields.choices_of(listed, "choices")
        steps = self._steps(record)
        answer = record["answer"]
        if answer is None:
            return Example(record_id, question, images, choices, (), None, None)
        if choices:
            index = _answer_index(answer, listed, choices)
            return Example(record_id, question, images, choices, steps, choices[index], index)
        judge: Judge = "number" if fields.is_number(answer) else "text"
        return Example(record_id, question, images, (), steps, fields.text_or_number(answer, "answer"), None, (), judge)

    def _steps(self, record: Record) -> tuple[str, ...]:
        written = record.get("steps")
        if isinstance(written, str):
            return split_reasoning(fields.text(written, "steps"), self.steps_from) if written.strip() else ()
        if written is not None:
            return fields.texts(written, "steps")
        fields.refuse_other_reasoning(record)
        return ()


def _answer_index(answer: Any, listed: list[Any], choices: tuple[str, ...]) -> int:
    """A choice as it is written in JSON, else an index, a digit in quotes too, or the letter of one.

    Choices that are numbers leave a number unclear, unless only one reading gives a choice.
    """
    if fields.is_number(answer):
        as_choice = [i for i, choice in enumerate(listed) if fields.is_number(choice) and choice == answer]
        if not as_choice:
            return fields.choice_at(answer, choices, "answer")
        if type(answer) is int and answer in range(len(choices)) and choices[answer] != choices[as_choice[0]]:
            raise UserError(f"'answer' {answer} may be a choice or the index of another: write the choices as texts")
        return as_choice[0]
    answer = fields.text(answer, "answer")
    if answer in choices:
        return choices.index(answer)
    labels = [str(i) for i in range(len(choices))] + [chr(ord("A") + i) for i in range(min(len(choices), 26))]
    # among choices that are labels themselves ("1", "2", "4" or "a", "b") a label that is none of them is a mistake
    if answer in labels and not any(len(choice) == 1 or choice.isdecimal() for choice in choices):
        return labels.index(answer) % len(choices)
    raise UserError(f"'answer' must be the text of a choice or an index, found {answer!r:.60}")
