"""The demo's questions in the forms that data sets are published in: the same questions, pictures, reasoning and
answers, with the keys, the files and the ways to hold a picture that each form has."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # of A-OKVQA's release, with `picture`, a path


def picture(scenes: Path, record: Record) -> Path:
    return scenes / f"{record['split']}2017" / f"{record['image_id']:012d}.png"


def answer(record: Record) -> str:
    text: str = record["choices"][record["correct_choice_idx"]]
    return text


def as_json(records: Sequence[Record], path: Path) -> str:
    path.with_suffix(".json").write_text(json.dumps(records, indent=1))
    return path.with_suffix(".json").name


def as_parquet(records: Sequence[Record], path: Path) -> str:
    """Pictures in the table, as the hub's viewer and `datasets` write them."""
    from datasets import Dataset, Image

    table = Dataset.from_dict({key: [record[key] for record in records] for key in records[0]})
    table.cast_column("image", Image()).to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet").name


def release(scenes: Path, records: Sequence[Record], path: Path) -> str:
    """A-OKVQA's JSON: COCO ids; the pictures lie beside it."""
    return as_json(records, path)


def flattened(scenes: Path, records: Sequence[Record], path: Path) -> str:
    """A-OKVQA with the choices in the question and the index as the answer."""

    def flat(record: Record) -> Record:
        choices = ", ".join(f"{place} : {choice}" for place, choice in enumerate(record["choices"]))
        question = f"{record['question']} The choices are {choices}"
        image = str(picture(scenes, record).relative_to(scenes))
        steps, index = record["rationales"], str(record["correct_choice_idx"])
        return {"image": image, "question": question, "steps": steps, "answer": index}

    return as_json([flat(record) for record in records], path)


def hub(scenes: Path, records: Sequence[Record], path: Path) -> str:
    """A-OKVQA's parquet of the hub, whose direct answers are one text."""
    moved = ({**record, "image": str(picture(scenes, record))} for record in records)
    texts = [{**record, "direct_answers": str(record["direct_answers"])} for record in moved]
    dropped = ("split", "image_id")
    return as_parquet([{key: value for key, value in text.items() if key not in dropped} for text in texts], path)


def m3cot(scenes: Path, records: Sequence[Record], path: Path) -> str:
    """M3CoT's parquet of the hub: letters, and one rationale."""

    def one(record: Record) -> Record:
        about = {"id": record["question_id"], "domain": "commonsense", "topic": "tiles", "context": ""}
        asked = {"question": record["question"], "choices": record["choices"], "image": str(picture(scenes, record))}
        letter = chr(ord("A") + record["correct_choice_idx"])
        return {**about, **asked, "answer": letter, "rationale": record["rationales"][0]}

    return as_parquet([one(record) for record in records], path)


def scienceqa(scenes: Path, records: Sequence[Record], path: Path) -> str:
    """ScienceQA's problems.json: an object of records by their ids, a hint and a solution."""

    def one(record: Record) -> Record:
        about = {"subject": "natural science", "grade": "grade2", "lecture": "", "hint": "The tiles are marked."}
        image = str(picture(scenes, record).relative_to(scenes))
        asked = {"question": record["question"], "choices": record["choices"], "image": image}
        return {**about, **asked, "answer": record["correct_choice_idx"], "solution": record["rationales"][0]}

    path.with_suffix(".json").write_text(json.dumps({record["question_id"]: one(record) for record in records}))
    return path.with_suffix(".json").name


def llava(scenes: Path, records: Sequence[Record], path: Path) -> str:
    """LLaVA's conversations, JSON Lines, the reasoning in `<think>`."""

    def one(record: Record) -> Record:
        said = f"<think>{record['rationales'][0]}</think>{answer(record)}"
        turns = [{"from": "human", "value": f"<image>\n{record['question']}"}, {"from": "gpt", "value": said}]
        image = str(picture(scenes, record).relative_to(scenes))
        return {"id": record["question_id"], "image": image, "conversations": turns}

    lines = [json.dumps(one(record)) for record in records]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    return path.with_suffix(".jsonl").name


def gsm8k(scenes: Path, records: Sequence[Record], path: Path) -> str:
    """GSM8K's lines without pictures: steps, then the answer behind ####."""

    def one(record: Record) -> Record:
        steps = record["rationales"][0].replace(". ", ".\n")
        return {"question": record["question"], "answer": f"{steps}\n#### {record['image_id']}"}

    lines = [json.dumps(one(record)) for record in records]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    return path.with_suffix(".jsonl").name


FORMS: dict[str, Callable[[Path, Sequence[Record], Path], str]] = {
    "A-OKVQA, release": release,
    "A-OKVQA, flattened": flattened,
    "A-OKVQA, hub's parquet": hub,
    "M3CoT, hub's parquet": m3cot,
    "ScienceQA, problems.json": scienceqa,
    "LLaVA's conversations": llava,
    "GSM8K": gsm8k,
}
