"""M3CoT (Chen et al. 2024, arXiv:2405.16473): question, context, choices, answer (a letter), rationale, image.

As on the hub (LightChen2333/M3CoT).
"""

from multicoco.data.example import Example
from multicoco.data.sources import fields
from multicoco.data.sources.source import ID_KEYS, Record, Source
from multicoco.data.sources.steps import split_reasoning
from multicoco.errors import UserError


class M3CoT(Source):
    """The context is a part of the question. A record whose `image` is null has none, though it has an image_id."""

    keys = frozenset({*ID_KEYS, "question", "context", "choices", "answer", "rationale", "image", "images", "image_id"})

    @classmethod
    def matches(cls, record: Record) -> bool:
        """By a rationale beside the choices."""
        return {"question", "choices", "answer", "rationale"} <= record.keys() and "steps" not in record

    def parse(self, record: Record, record_id: str) -> Example:
        """See `Source.parse`."""
        fields.required(record, "question", "choices", "answer", "rationale")
        question = fields.text(record["question"], "question")
        if record.get("context") not in (None, ""):
            question += f"\nContext: {fields.text(record['context'], 'context')}"
        choices = fields.choices_of(record["choices"], "choices")
        if "image_id" in record and "images" not in record:
            fields.required(record, "image")
        images = fields.images_of(record, self.image_dir)
        if record["answer"] in (None, ""):
            return Example(record_id, question, images, choices, (), None, None)
        letters = [chr(ord("A") + place) for place in range(len(choices))]
        if record["answer"] not in letters:
            raise UserError(f"'answer' must be one of {', '.join(letters)}, found {record['answer']!r:.60}")
        index = letters.index(record["answer"])
        written = record["rationale"]
        steps = split_reasoning(fields.text(written, "rationale"), self.steps_from) if written else ()
        return Example(record_id, question, images, choices, steps, choices[index], index)
