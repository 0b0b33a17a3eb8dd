"""A-OKVQA (Schwenk et al. 2022, arXiv:2206.01718) and text-only records as examples.

A file is a JSON list of records, each in one of three forms:

- official release: question_id, image_id, split, question, choices, correct_choice_idx, direct_answers,
  rationales;
- flattened: image, question ("... The choices are 0 : a, 1 : b"), steps (the rationales), answer ("1");
- text only, as ProsQA: question, steps, answer.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from multicoco.data.example import Example, load_image
from multicoco.errors import UserError

logger = logging.getLogger(__name__)

StepsFrom = Literal["sentences", "rationales"]

ID_KEYS = ("question_id", "id", "idx")  # the first one present; without any, the place in the file
SHOWN_BAD_RECORDS = 10

# Words of `split_sentences`, without their last stop.
OPENING = "\"'(["
TITLES = {"mr", "mrs", "ms", "dr", "prof", "st", "mt", "vs", "e.g", "i.e"}
ABBREVIATIONS = {"ft", "lb", "lbs", "oz", "approx", "etc", "inc", "co", "jr", "sr"}


def load_examples(
    path: Path,
    image_dir: Path,
    steps_from: StepsFrom = "sentences",
    on_bad_record: Literal["error", "skip"] = "error",
    limit: int | None = None,
    verify_images: bool = True,
) -> list[Example]:
    """Loads a JSON list of records; their texts are kept as they are, but for outer white space.

    Args:
        path: the JSON file.
        image_dir: a flattened record's image is relative to it; an official record's is, with .jpg or .png,
            `{split}2017/{image_id:012d}` in it or, where that folder is absent, `{image_id:012d}`.
        steps_from: the steps of a record with an image are the sentences of its first rationale, or all its
            rationales. Text-only records keep their steps.
        on_bad_record: "skip" leaves malformed records and those with a missing or broken image out, with one
            warning.
        limit: keep the first `limit` good records, and check none after them.
        verify_images: decode every image now rather than in training.

    Raises:
        UserError: the file is no JSON list of records, no record is good, or any is bad under "error".
    """
    if limit is not None and limit < 1:
        raise UserError(f"{path}: the limit of examples must be at least 1, not {limit}")
    records = _read_list(path)
    image_root = Path(os.path.abspath(image_dir))

    def check(index: int) -> Example | UserError:
        try:
            example = _parse(records[index], index, image_root, steps_from)
            if verify_images and example.image is not None:
                load_image(example.image)
            return example
        except UserError as error:
            return error

    examples: list[Example] = []
    problems: list[str] = []
    places: dict[str, int] = {}
    checked = 0
    # a bar on a terminal only: in a log a check of seconds to minutes needs none
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=limit or len(records), desc=f"checking {path.name}", disable=None) as bar,
    ):
        while checked < len(records) and (limit is None or len(examples) < limit):
            missing = len(records) if limit is None else limit - len(examples)
            batch = range(checked, min(checked + missing, len(records)))
            for index, result in zip(batch, pool.map(check, batch), strict=True):
                if isinstance(result, UserError):
                    problems.append(f"{_label(records[index], index)}: {result}")
                elif result.id in places:
                    problems.append(f"record {index}: its id {result.id!r} is also that of record {places[result.id]}")
                else:
                    places[result.id] = index
                    examples.append(result)
                bar.update()
            checked = batch.stop

    if problems:
        report = "\n  ".join([f"{path}: {len(problems)} bad of {checked} records", *problems[:SHOWN_BAD_RECORDS]])
        if len(problems) > SHOWN_BAD_RECORDS:
            report += f"\n  and {len(problems) - SHOWN_BAD_RECORDS} more"
        if on_bad_record == "error":
            raise UserError(f"{report}\nFix them, or leave them out with on_bad_record: skip")
        if not examples:
            raise UserError(f"{report}\nNone is left: check that this is the right file and image folder")
        logger.warning("%s\nThey are left out", report)
    return examples


def split_sentences(text: str) -> list[str]:
    """Splits a text into sentences; joined by a space they give the text again, but for white space.

    A sentence ends at `.`, `!` or `?`, with closing quotes or brackets, before white space. The next word
    need not begin with a capital (annotators often write none), except after an abbreviation ("3.5 ft. tall",
    "U.S. flag") or a closing quote or bracket. None ends after a title ("Dr. No", "e.g. this") or an initial
    ("John F. Kennedy").
    """
    sentences, start = [], 0
    for stop in re.finditer(r"""[.!?]+(?P<closing>["')\]]*)\s+""", text):
        word = re.search(r"\S*$", text[start : stop.start()])[0].lstrip(OPENING)
        if stop[0].startswith(".") and (word.lower() in TITLES or re.fullmatch("[A-HJ-Z]", word)):
            continue
        needs_capital = stop["closing"] or word.lower() in ABBREVIATIONS or re.fullmatch(r"(\w\.)+\w", word)
        if needs_capital and not text[stop.end() :].lstrip(OPENING)[:1].isupper():
            continue
        sentences.append(text[start : stop.end()].strip())
        start = stop.end()
    return [sentence for sentence in [*sentences, text[start:].strip()] if sentence]


def _read_list(path: Path) -> list:
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: must hold a JSON list of at least one record")
    return records


def _label(record: object, index: int) -> str:
    ids = [record[key] for key in ID_KEYS if key in record] if isinstance(record, dict) else []
    return f"record {index} (id {ids[0]!r:.60})" if ids else f"record {index}"


def _parse(record: object, index: int, image_root: Path, steps_from: StepsFrom) -> Example:
    """One record as an example; UserError with the reason alone where it is bad."""
    if not isinstance(record, dict):
        raise UserError(f"must be a JSON object, found {record!r:.60}")
    key = next((key for key in ID_KEYS if key in record), None)
    value = index if key is None else record[key]
    record_id = str(value) if type(value) is int else _text(value, key)
    official = "image" not in record and ("image_id" in record or "choices" in record)
    return (_official if official else _flattened)(record, record_id, image_root, steps_from)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name!r} must be text that is not empty, found {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
        raise UserError(f"{name!r} is not valid Unicode ({error.reason})") from error
    return value.strip()


def _texts(record: dict, key: str) -> tuple[str, ...]:
    values = record.get(key)
    if not isinstance(values, list):
        raise UserError(f"{key!r} must be a list of texts, found {values!r:.60}")
    return tuple(_text(value, f"{key}[{i}]") for i, value in enumerate(values))


def _integer(record: dict, key: str) -> int:
    value = record.get(key)
    if type(value) is not int:  # isinstance takes a bool
        raise UserError(f"{key!r} must be an integer, found {value!r:.60}")
    return value


def _at_least_two(choices: tuple[str, ...]) -> tuple[str, ...]:
    if len(choices) < 2:
        raise UserError(f"there must be at least 2 choices, found {len(choices)}")
    return choices


def _steps(rationales: Sequence[str], steps_from: StepsFrom) -> tuple[str, ...]:
    if steps_from == "sentences" and rationales:
        return tuple(split_sentences(rationales[0]))
    return tuple(rationales)


def _inside(folder: Path, relative: str) -> Path:
    path = Path(os.path.normpath(folder / relative))
    if not path.is_relative_to(folder):
        raise UserError(f"{relative!r:.60} leaves the image folder {folder}")
    return path


def _official(record: dict, record_id: str, image_root: Path, steps_from: StepsFrom) -> Example:
    question = _text(record.get("question"), "question")
    choices = _at_least_two(_texts(record, "choices"))
    image = _coco_image(record, image_root)
    if record.get("correct_choice_idx") is None and record.get("direct_answers") is None:
        return Example(record_id, question, image, choices, (), None, None, ())
    answer_index = _integer(record, "correct_choice_idx")
    if not 0 <= answer_index < len(choices):
        raise UserError(f"'correct_choice_idx' is {answer_index}, but there are {len(choices)} choices")
    steps = _steps(_texts(record, "rationales"), steps_from)
    direct_answers = _texts(record, "direct_answers")
    return Example(record_id, question, image, choices, steps, choices[answer_index], answer_index, direct_answers)


def _coco_image(record: dict, image_root: Path) -> Path:
    folder = _inside(image_root, f"{_text(record.get('split'), 'split')}2017")
    if not folder.is_dir():
        folder = image_root
    name = f"{_integer(record, 'image_id'):012d}"
    for path in (folder / f"{name}.jpg", folder / f"{name}.png"):
        if path.is_file():
            return path
    raise UserError(f"there is no image {folder / name}.jpg or .png")


def _flattened(record: dict, record_id: str, image_root: Path, steps_from: StepsFrom) -> Example:
    """The flattened form with an image, or text only: then an open question and the steps as given."""
    for key in ("question", "steps", "answer"):  # null in a test record, but there
        if key not in record:
            raise UserError(f"{key!r} is missing")
    question, choices, image = _text(record["question"], "question"), (), None
    steps = () if record["steps"] is None else _texts(record, "steps")
    if "image" in record:
        question, choices = _split_choices(question)
        image = _inside(image_root, _text(record["image"], "image"))
        if not image.is_file():
            raise UserError(f"there is no image {image}")
        steps = _steps(steps, steps_from)
    if record["answer"] is None or (record["answer"] == "None" and not steps):
        return Example(record_id, question, image, choices, (), None, None, ())
    answer, answer_index = _text(record["answer"], "answer"), None
    if choices:
        answer_index = _answer_index(answer, choices)
        answer = choices[answer_index]
    return Example(record_id, question, image, choices, steps, answer, answer_index, ())


def _split_choices(text: str) -> tuple[str, tuple[str, ...]]:
    """Splits "Who? The choices are 0 : a, 1 : b" on the running index: choices may hold commas and colons."""
    text += " "  # an empty last choice keeps the space of its separator
    question, marker, rest = text.rpartition("The choices are 0 : ")
    if not marker:
        return rest.strip(), ()
    choices, separator = [], marker
    while separator:
        choice, separator, rest = rest.partition(f", {len(choices) + 1} : ")
        choices.append(_text(choice, f"choice {len(choices)}"))
    return _text(question, "question"), _at_least_two(tuple(choices))


def _answer_index(answer: str, choices: tuple[str, ...]) -> int:
    """An answer is an index or, where it is none, the text of a choice."""
    for names in ([str(i) for i in range(len(choices))], choices):
        if answer in names:
            return names.index(answer)
    raise UserError(f"'answer' must be an index or the text of a choice, found {answer!r:.60}")
