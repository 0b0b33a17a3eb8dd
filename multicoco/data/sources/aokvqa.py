"""A-OKVQA (Schwenk et al. 2022, arXiv:2206.01718), in two forms.

- the official release: question_id, image_id, split, question, choices, correct_choice_idx, direct_answers,
  rationales; copies of it have `image` instead of image_id, and the direct answers as one text, "['a', 'b']";
- flattened: image, question ("... The choices are 0 : a, 1 : b"), steps (the rationales), answer ("1").

Test records have neither answer nor rationales.
"""

import ast
from pathlib import Path
from typing import Any

from multicoco.data.example import Example
from multicoco.data.sources import fields
from multicoco.data.sources.source import ID_KEYS, Record, Source
from multicoco.data.sources.steps import rationale_steps
from multicoco.errors import UserError

_CHOICES = "The choices are 0 : "
_OFFICIAL_ONLY = ("correct_choice_idx", "direct_answers", "rationales")


class AOKVQA(Source):
    """Records of either form."""

    keys = frozenset(
        {*ID_KEYS, "question", "choices", "image", "images", "image_id", "split", "steps", "answer", *_OFFICIAL_ONLY}
    )

    metric = "aokvqa"

    @classmethod
    def matches(cls, record: Record) -> bool:
        """By the keys of the release, or by the list of choices in the question."""
        question = record.get("question")
        flattened = isinstance(question, str) and _CHOICES in question and "choices" not in record
        return flattened or _is_official(record)

    def parse(self, record: Record, record_id: str) -> Example:
        """See `Source.parse`."""
        return (self._official if _is_official(record) else self._flattened)(record, record_id)

    def _official(self, record: Record, record_id: str) -> Example:
        question = fields.text(record.get("question"), "question")
        choices = fields.choices_of(record.get("choices"), "choices")
        images = fields.images_of(record, self.image_dir) or (self._coco_image(record),)
        listed = _listed(record.get("direct_answers"))
        if record.get("correct_choice_idx") is None and listed in (None, [], ""):
            return Example(record_id, question, images, choices, (), None, None)
        index = fields.choice_at(record.get("correct_choice_idx"), choices, "correct_choice_idx")
        steps = rationale_steps(fields.texts(record.get("rationales"), "rationales"), self.steps_from)
        direct_answers = fields.texts(listed, "direct_answers")
        return Example(
            record_id, question, images, choices, steps, choices[index], index, direct_answers, groups=_groups(record)
        )

    def _coco_image(self, record: Record) -> Path:
        folder = fields.inside(self.image_dir, f"{fields.text(record.get('split'), 'split')}2017")
        try:
            folder = folder if folder.is_dir() else self.image_dir
        except (OSError, ValueError) as error:
            raise UserError(f"'split' is no name of a folder, found {record['split']!r:.60}") from error
        name = f"{fields.integer(record.get('image_id'), 'image_id'):012d}"
        for path in (folder / f"{name}.jpg", folder / f"{name}.png"):
            if fields.is_file(path):
                return path
        raise UserError(f"there is no image {folder / name}.jpg or .png")

    def _flattened(self, record: Record, record_id: str) -> Example:
        fields.required(record, "question", "steps", "answer")
        question, choices = _split_choices(fields.text(record["question"], "question"))
        images = fields.images_of(record, self.image_dir)
        rationales = () if record["steps"] is None else fields.texts(record["steps"], "steps")
        if record["answer"] is None or (record["answer"] == "None" and not rationales):
            return Example(record_id, question, images, choices, (), None, None)
        steps = rationale_steps(rationales, self.steps_from)
        index = _answer_index(record["answer"], choices)
        return Example(record_id, question, images, choices, steps, choices[index], index)


def _is_official(record: Record) -> bool:
    return any(key in record for key in _OFFICIAL_ONLY) or ("image_id" in record and "choices" in record)


def _groups(record: Record) -> dict[str, str]:
    """What the official score of direct answers leaves out; a text in copies that know no truth values."""
    difficult = record.get("difficult_direct_answer")
    if difficult is None:
        return {}
    if (written := str(difficult).lower()) not in ("true", "false"):
        raise UserError(f"'difficult_direct_answer' must be true or false, found {difficult!r:.60}")
    return {"difficult_direct_answer": written}


def _listed(value: Any) -> Any:
    """A list that was written as one text in Python's form, as the release's CSV and parquet copies have it."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _split_choices(question: str) -> tuple[str, tuple[str, ...]]:
    """Splits "Who? The choices are 0 : a, 1 : b" on the running index: choices may hold commas and colons."""
    before, marker, rest = f"{question} ".rpartition(_CHOICES)  # an empty last choice keeps its separator's space
    if not marker:
        raise UserError(f"'question' must end with '{_CHOICES}..., 1 : ...', or set source: records")
    choices: list[str] = []
    while marker:
        choice, marker, rest = rest.partition(f", {len(choices) + 1} : ")
        choices.append(choice)
    return fields.text(before, "question"), fields.choices_of(choices, "question")


def _answer_index(answer: Any, choices: tuple[str, ...]) -> int:
    """An answer is an index or, where it is none, the text of a choice."""
    if type(answer) is int:
        return fields.choice_at(answer, choices, "answer")
    answer = fields.text(answer, "answer")
    for names in ([str(i) for i in range(len(choices))], choices):
        if answer in names:
            return names.index(answer)
    raise UserError(f"'answer' must be an index or the text of a choice, found {answer!r:.60}")
