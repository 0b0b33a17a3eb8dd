"""Every question with all that was answered to it, as the page's table has it."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from multicoco.data.example import Example
from multicoco.errors import UserError
from multicoco.evaluation.thoughts import Thought, Thoughts, read_thoughts
from multicoco.report.folder import RunFolder, read_lines
from multicoco.report.pictures import Thumbnails
from multicoco.study.samples import read_evaluations

TEXT_BUDGET = 25_000_000  # characters
_LONGEST_TEXT = 20_000
_MOST_GROUPS = 40  # of one kind
_WORDS, _GOLD_WORDS = 5, 24  # of a thought

Sample = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Answered:
    """One evaluation: who answered, and what.

    Attributes:
        name: of the run, the mode and the intervention, as the page says it.
        untouched: the name of the evaluation that an intervention is held against.
        samples: by the question; of all questions, those too whose right answer is not known.
        thoughts: what was seen in its thoughts, if that was asked for.
    """

    name: str
    summary: dict[str, Any]
    samples: dict[Key, Sample]
    thoughts: Thoughts | None = None
    untouched: str | None = None

    def right(self, key: Key) -> bool | None:
        sample = self.samples.get(key)
        return None if sample is None else sample.get("correct")


@dataclass
class Table:
    """What the page's script shows.

    Attributes:
        content: questions, evaluations, groups and pictures, as JSON has them.
        notes: what was left out.
        flips: for every two evaluations without interventions, and for each with one and that without it: the numbers
            of questions that only the first, only the second answers correctly, of those that both were asked.
        groups: group -> its value of each question.
    """

    content: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    flips: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    groups: dict[str, dict[Key, str]] = field(default_factory=dict)


def read_answers(run: RunFolder, name: str = "") -> list[Answered]:
    """The newest answers in every mode; what does not belong together is noted among the run's problems.

    Args:
        name: of the run, where there are several.
    """
    found = []
    plain = [mode for mode, summary in run.summaries.items() if "intervention" not in summary]
    for mode in run.summaries:
        try:
            [evaluation] = read_evaluations(f"{run.path}:{mode}")
        except UserError as error:
            run.problems.append(str(error))
            continue
        samples = dict(_keyed(read_lines(evaluation.file, run.problems)))
        summary = run.summaries[mode]
        who = " ".join(filter(None, [name, str(summary.get("mode", mode)) if len(plain) > 1 or not name else ""]))
        if "intervention" in summary:
            found.append(Answered(f"{who} under {summary['intervention']}", summary, samples, None, who))
        else:
            found.append(Answered(who, summary, samples, _read_thoughts(run, evaluation.file.stem)))
    return found


def _read_thoughts(run: RunFolder, name: str) -> Thoughts | None:
    path = run.path / "thoughts" / f"{name}.safetensors"
    try:
        return read_thoughts(path) if path.exists() else None
    except UserError as error:
        run.problems.append(str(error))
        return None


def _keyed(samples: Iterator[Sample]) -> Iterator[tuple[Key, Sample]]:
    """A question is told by its id, its text, its choices and its right answer; one that is there twice, by its place
    too."""
    seen: Counter[Key] = Counter()
    for sample in samples:
        choices = tuple(map(str, sample.get("choices") or ()))
        gold = sample.get("gold")
        known = gold if isinstance(gold, int | str | None) else json.dumps(gold)
        key = (str(sample.get("id")), str(sample.get("question")), choices, known)
        seen[key] += 1
        yield (*key, seen[key]), sample


def untouched(answered: Sequence[Answered]) -> list[int | None]:
    """Of each evaluation under an intervention, the place of the one that it is held against, if that is there."""
    last: dict[str | None, int] = {}  # runs may share a name: a run's own evaluation stands before what was done to it
    places = []
    for place, one in enumerate(answered):
        places.append(last.get(one.untouched))
        last[one.name] = place
    return places


def _touched(one: Answered, place: int | None) -> dict[str, Any] | None:
    """What was done to the thoughts, to those of which evaluation, and to which thought alone."""
    if place is None:
        return None
    how = str(one.summary["intervention"])
    alone = re.match(r"only\((\d+),", how)
    return {"of": place, "how": how[:200], "at": int(alone[1]) if alone else None}


def make_table(
    answered: Sequence[Answered],
    examples: dict[tuple[str, str], Example],
    pictures: Thumbnails,
    room: int = TEXT_BUDGET,
) -> Table:
    """Questions in the order of their file. Where room is short, those that not all answer correctly come first.

    Args:
        examples: by id and question, of those that are known.
        room: for texts, in characters.
    """
    keys = list(dict.fromkeys(key for evaluation in answered for key in evaluation.samples))
    of_key = {key: example for key in keys if (example := examples.get(key[:2]))}
    norms = [round(one.thoughts.embedding.mean, 3) if one.thoughts else None for one in answered]
    before = untouched(answered)
    touched = [_touched(one, place) for one, place in zip(answered, before, strict=True)]
    table = Table({"evaluations": [one.name for one in answered], "norms": norms, "touched": touched})
    table.groups = _groups(keys, of_key)
    pairs = [*combinations([one for one, place in zip(answered, before, strict=True) if place is None], 2)]
    pairs += [(answered[place], one) for one, place in zip(answered, before, strict=True) if place is not None]
    table.flips = [_flipped(a, b, keys) for a, b in pairs]
    numbers = {key: number for number, key in enumerate(keys, start=1)}
    rows: dict[Key, dict[str, Any]] = {}
    for key in sorted(keys, key=lambda key: all(evaluation.right(key) for evaluation in answered)):
        row = _row(key, answered, of_key.get(key), pictures) if room > 0 else None
        if row is not None:
            row["no"] = numbers[key]
            row["g"] = [values[key] for values in table.groups.values()]
            rows[key] = row
            room -= _size(row)
    table.content |= {
        "questions": [rows[key] for key in keys if key in rows],
        "groups": {name: sorted(set(values.values()), key=_order) for name, values in table.groups.items()},
        "pictures": pictures.urls,
    }
    if missing := len(keys) - len(rows):
        table.notes.append(f"{missing} of {len(keys)} questions are left out, there is no room for their texts")
    if pictures.left_out:
        table.notes.append(
            f"{pictures.left_out} pictures are left out, there is room for {pictures.room / 1e6:.0f} MB; those of "
            "questions that not all answer correctly came first"
        )
    if pictures.broken:
        table.notes.append(f"{pictures.broken} pictures could not be read")
    return table


def _row(key: Key, answered: Sequence[Answered], example: Example | None, pictures: Thumbnails) -> dict[str, Any]:
    name, question, choices, gold, _ = key
    numbers = [pictures.number(image) for image in example.images] if example else []
    return {
        "id": name[:200],
        "q": _text(question),
        "c": [_text(choice) for choice in choices],
        "a": gold if isinstance(gold, int) and choices else None if gold is None else _text(str(gold)),
        "s": [_text(step) for step in example.steps] if example else [],
        "i": [number for number in numbers if number is not None],
        "e": [_answer(evaluation, key) for evaluation in answered],
    }


def _answer(evaluation: Answered, key: Key) -> dict[str, Any] | None:
    if (sample := evaluation.samples.get(key)) is None:
        return None
    choices = key[2]
    extracted = sample.get("extracted")
    is_place = isinstance(extracted, int) and 0 <= extracted < len(choices)
    answer = {
        "t": _text(str(sample.get("generated", ""))),
        "x": _text(choices[extracted] if is_place else str(extracted)) if extracted is not None else None,
        "r": sample.get("correct"),
        "n": sample.get("new_tokens"),
        "l": sample.get("latent_tokens", sample.get("latent_passes")),
    }
    if sample.get("truncated"):
        answer["cut"] = True
    if logprobs := sample.get("choice_logprobs"):
        answer["p"] = [round(value, 2) if math.isfinite(value) else None for value in logprobs]
    if isinstance(logprob := sample.get("gold_logprob"), int | float) and math.isfinite(logprob):
        answer["gold"] = round(logprob, 2)
    if evaluation.thoughts and key[0] in evaluation.thoughts.places:
        answer["h"] = [_thought(thought) for thought in evaluation.thoughts.of(key[0])]
    return answer


def _thought(thought: Thought) -> dict[str, Any]:
    """Its size, the step it stands for, the words that are read in it, and the ranks of the step's words."""
    return {
        "n": round(thought.norm, 2) if math.isfinite(thought.norm) else None,
        "s": thought.step,
        "w": [[word.text, round(word.probability, 3)] for word in thought.top[:_WORDS]],
        "g": [[word.text, word.rank] for word in thought.gold[:_GOLD_WORDS]],
    }


def _groups(keys: Sequence[Key], of_key: dict[Key, Example]) -> dict[str, dict[Key, str]]:
    """By what questions may be told apart, where they differ in it."""
    groups: dict[str, dict[Key, str]] = {
        "number of written steps": {key: str(len(of_key[key].steps)) if key in of_key else "?" for key in keys},
        "number of choices": {key: str(len(key[2])) for key in keys},
        "number of pictures": {key: str(len(of_key[key].images)) if key in of_key else "?" for key in keys},
    }
    for name in dict.fromkeys(name for example in of_key.values() for name in example.groups):  # of the data itself
        groups[name] = {key: of_key[key].groups.get(name, "?") if key in of_key else "?" for key in keys}
    return {name: values for name, values in groups.items() if 1 < len(set(values.values())) <= _MOST_GROUPS}


def _flipped(first: Answered, second: Answered, keys: Sequence[Key]) -> tuple[str, str, int, int, int]:
    both = [(first.right(key), second.right(key)) for key in keys]
    known = [(a, b) for a, b in both if a is not None and b is not None]
    return first.name, second.name, sum(a and not b for a, b in known), sum(b and not a for a, b in known), len(known)


def _order(value: str) -> tuple[int, str]:
    return (int(value), "") if value.isdecimal() else (10**9, value)


def _text(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}… and {len(text) - _LONGEST_TEXT} more characters"


def _size(row: dict[str, Any]) -> int:
    """About as many characters as it takes in the page."""
    texts = [row["q"], *row["c"], *row["s"], *(answer["t"] for answer in row["e"] if answer)]
    thoughts = [thought for answer in row["e"] if answer for thought in answer.get("h", [])]
    return sum(map(len, texts)) + 150 * (1 + len(row["e"])) + 300 * len(thoughts)
