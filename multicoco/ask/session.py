"""`multicoco ask`: one question, or one a line of standard input."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from multicoco.ask.asker import Answer, Asker
from multicoco.errors import UserError


@dataclass(frozen=True)
class Question:
    """One to be asked."""

    question: str
    image: str | list[str] | None = None
    choices: Sequence[str] = ()


@dataclass(frozen=True)
class How:
    """What a session asks for; see `Asker.ask`. `modes` has all that a question is asked in."""

    modes: Sequence[str]
    latents: int | None
    intervene: Sequence[str]
    lens: bool
    as_json: bool


def questions_of(lines: Iterable[str], image: str | None, choices: Sequence[str]) -> Iterator[Question | UserError]:
    """One a line: its text, or a JSON object with `question` and, if they are not the session's, `image` and
    `choices`. Empty lines are none."""
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text.startswith("{"):
            yield _read(text, number, image, choices)
        elif text:
            yield Question(text, image, choices)


def _read(text: str, number: int, image: str | None, choices: Sequence[str]) -> Question | UserError:
    try:
        content = json.loads(text)
        if unknown := content.keys() - {"question", "image", "choices"}:
            raise ValueError(f"it has {', '.join(sorted(unknown))}")
        asked = {"image": image, "choices": choices, **content}
        if not isinstance(asked.get("question"), str) or not isinstance(asked["choices"], list | tuple):
            raise ValueError("question must be a text, and choices a list")
    except ValueError as error:
        return UserError(f"line {number}: no question with image and choices as JSON ({error}): {text:.60}")
    return Question(asked["question"], asked["image"], [str(choice) for choice in asked["choices"]])


def read_choices(text: str) -> list[str]:
    """With commas between; one that has a comma itself stands in quotes."""
    return next(csv.reader([text], skipinitialspace=True), []) if text.strip() else []


def run(asker: Asker, questions: Iterable[Question | UserError], how: How) -> None:
    """Asks and prints. A question that cannot be asked is said, and the next one is asked.

    Raises:
        UserError: there were such questions; or there was no question.
    """
    n, failed = 0, 0
    for question in questions:
        n += 1
        try:
            if isinstance(question, UserError):
                raise question
            _ask(asker, question, how)
        except UserError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
    if not n:
        raise UserError("there is no question: give --question, or one a line on standard input")
    if failed:
        raise UserError(f"{failed} of {n} questions could not be asked")


def _ask(asker: Asker, question: Question, how: How) -> None:
    answers = []
    for mode in how.modes:
        has_thoughts = mode == asker.modes[-1]  # of several modes, the others are asked without what concerns thoughts
        of_thoughts: dict[str, Any] = {"latents": how.latents, "intervene": how.intervene, "lens": how.lens}
        options = of_thoughts if has_thoughts or len(how.modes) == 1 else {}
        streams = not how.as_json and sys.stdout.isatty()
        if streams:
            print(f"{mode}: ", end="", flush=True)
        streamer = asker.streamer() if streams else None
        answer = asker.ask(question.image, question.question, question.choices, mode=mode, streamer=streamer, **options)
        answers.append(answer)
        if not how.as_json:
            print("\n".join(_lines(answer, is_shown=streams)), flush=True)
    if how.as_json:
        print(json.dumps(asdict(question) | {"answers": [asdict(a) for a in answers]}, ensure_ascii=False), flush=True)


def _lines(answer: Answer, is_shown: bool) -> Iterator[str]:
    """What is printed of an answer; of one that was shown while it was written, what follows."""
    if not is_shown:
        yield f"{answer.mode}: {' / '.join(answer.text.strip().splitlines())}"
    yield f"  {_said(answer)}"
    if answer.chances:
        yield "  " + ", ".join(f"{choice} {chance:.3f}" for choice, chance in answer.chances.items())
    for place, words in enumerate(answer.words, start=1):
        yield f"  thought {place}: " + " ".join(f"{word.strip() or repr(word)} {chance:.2f}" for word, chance in words)
    for name, changed in answer.under.items():
        yield f"  under {name}: {_said(changed)}"


def _said(answer: Answer) -> str:
    said = "no clear answer" if answer.answer is None else answer.answer
    cost = f"{answer.tokens} tokens" + (f", {answer.thoughts} thoughts" if answer.thoughts else "")
    return f"-> {said} ({cost}, {answer.seconds:.1f} s{', cut off' if answer.truncated else ''})"
