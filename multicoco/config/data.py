"""The keys of the records, and of what becomes of them (docs/data.md)."""

import re
from datetime import date, datetime
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from multicoco.config.columns import Columns
from multicoco.config.names import registered
from multicoco.config.section import NonNegativeInt, OptionalPath, OptionalStr, PathStr, PositiveInt, Section

StepsFrom = Literal["sentences", "rationales", "lines", "list", "tag"]
AnswerFormat = Literal["letter", "index", "text"]
Judge = Literal["text", "number"]


def _day(value: object) -> object:
    """A date, as Python and YAML have it, or its text."""
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value and value.isoformat()
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        raise ValueError("must be a date, as 2026-11-25")
    return date.fromisoformat(value).isoformat()


class Data(Section):
    data_dir: PathStr = Field(".", description="folder that train_path and val_path are relative to")
    image_dir: OptionalPath = Field(None, description="folder of the images; null: data_dir")
    train_path: OptionalPath = Field(
        None,
        description="training records: a file of JSON, JSON Lines, parquet or Arrow, `folder?split=train`, or "
        "`hf://owner/name?split=train&revision=...`, or a mixture (YAML) of these ([data](data.md))",
    )
    val_path: OptionalPath = Field(None, description="validation records, as train_path")
    source: Annotated[OptionalStr, AfterValidator(partial(registered, "sources"))] = Field(
        None, description="format of the records by its registered name; null: told by each record's keys"
    )
    columns: Columns = Columns()
    steps_from: StepsFrom = Field(
        "sentences",
        description="what of a written reasoning is a step: a sentence or line of it, an item of a list in it, what is "
        "in a tag (`<step>...</step>`); of several rationales the first is taken, or rationales: each is a step",
    )
    answer_format: AnswerFormat = Field("letter", description="how an answer names its choice")
    answer_type: Judge | None = Field(
        None,
        description="how open answers are compared: as texts, or as numbers: 18 = 18.0 = $18; null: as the records' "
        "source says",
    )
    direct_answers: bool = Field(
        False,
        description="ask questions that have annotators' answers without their choices, as A-OKVQA's second setting is",
    )
    prompt_date: Annotated[str | None, BeforeValidator(_day)] = Field(
        None,
        description="date that a chat template may write into the prompt, YYYY-MM-DD; null: the day the run was "
        "started first",
    )
    direct_instruction: str = Field("", description="last line of a question to be answered without reasoning")
    reasoning_instruction: str = Field("", description="last line of a question to be answered with reasoning")
    on_bad_record: Literal["error", "skip"] = Field(
        "error", description="a malformed record or image stops the run, or is left out"
    )
    max_length: PositiveInt | None = Field(
        None,
        description="tokens that a training example may have in any stage of the run, those of images, thoughts and "
        "answer among them; null: as many as the model has positions for ([data](data.md#length))",
    )
    too_long: Literal["error", "skip"] = Field(
        "error", description="a longer training example stops the run, or is left out of all stages"
    )
    max_train_samples: PositiveInt | None = Field(None, description="use only the first training records")
    max_val_samples: PositiveInt | None = Field(None, description="use only the first validation records")
    num_workers: NonNegativeInt = Field(2, description="processes per rank that load data")
    max_image_tiles: PositiveInt = Field(
        12,
        description="most tiles an image is cut into, the thumbnail not counted; of a model that takes images at their "
        "own resolution, the most squares of 448 x 448 pixels that an image's area may be (docs/models.md)",
    )
