"""ScienceQA (Lu et al. 2022, arXiv:2209.09513): question, choices, answer (an index), hint, image, lecture, solution.

As released (`problems.json`, an object of records by their id, images in `{split}/{id}/`) and as the hub's copies.
"""

from multicoco.data.example import Example, ImageSource
from multicoco.data.sources import fields
from multicoco.data.sources.source import ID_KEYS, Record, Source
from multicoco.data.sources.steps import rationale_steps
from multicoco.errors import UserError


class ScienceQA(Source):
    """The hint is a part of the question; the solution is the one rationale; the lecture is not read."""

    keys = frozenset({*ID_KEYS, "question", "choices", "answer", "hint", "image", "images", "solution", "split"})

    metric = "scienceqa"

    @classmethod
    def matches(cls, record: Record) -> bool:
        """By its own keys beside the choices."""
        return "choices" in record and "steps" not in record and ("hint" in record or "solution" in record)

    def parse(self, record: Record, record_id: str) -> Example:
        """See `Source.parse`."""
        fields.required(record, "question", "choices", "answer")
        question = fields.text(record["question"], "question")
        if record.get("hint") not in (None, ""):
            question += f"\nContext: {fields.text(record['hint'], 'hint')}"
        choices = fields.choices_of(record["choices"], "choices")
        images = self._images(record, record_id)
        if record["answer"] is None:
            return Example(record_id, question, images, choices, (), None, None)
        groups = {key: record[key] for key in ("subject", "topic", "grade") if isinstance(record.get(key), str)}
        groups |= {"has_text": str(bool(record.get("hint"))).lower(), "has_image": str(bool(images)).lower()}
        index = fields.choice_at(record["answer"], choices, "answer")
        solution = record.get("solution")
        steps = rationale_steps(fields.texts([] if solution is None else [solution], "solution"), self.steps_from)
        return Example(record_id, question, images, choices, steps, choices[index], index, groups=groups)

    def _images(self, record: Record, record_id: str) -> tuple[ImageSource, ...]:
        image, split = record.get("image"), record.get("split")
        if isinstance(image, str) and isinstance(split, str):
            try:
                return (fields.image_of(f"{split}/{record_id}/{image}", "image", self.image_dir),)
            except UserError:  # then it lies where the record itself says
                pass
        return fields.images_of(record, self.image_dir)
