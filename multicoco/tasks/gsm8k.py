"""GSM8k-Aug as it is published (Deng et al. 2023, arXiv:2311.01460), and as the Coconut authors take it.

A line is `question||step step #### answer`; a step is a calculation, `<<48/2=24>>`.
"""

import re
from pathlib import Path
from typing import Any

from multicoco.data.numbers import single_number
from multicoco.data.sources.steps import split_sentences
from multicoco.errors import UserError
from multicoco.files import write_text
from multicoco.tasks.files import to_json

_QUESTION_END, _ANSWER_MARK = "||", "####"
_BETWEEN_CALCULATIONS = re.compile(r"(?<=>>)\s+|\s+(?=<<)")
_SHOWN = 5


def convert_gsm8k(source: Path, out: Path) -> int:
    """Writes records (`question`, `steps`, `answer`) of a file of lines, answers as JSON numbers, so judged as such.

    Returns:
        The number of records.

    Raises:
        UserError: a file cannot be read or written, or a line has another form; it names file and lines.
    """
    if out.exists():
        raise UserError(f"{out} is there already: give another --out or remove it")
    try:
        lines = source.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also split within texts
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}): give the path of a text file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: is no text in UTF-8 ({error.reason})") from error
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                records.append(parse_line(line))
        except UserError as error:
            problems.append(f"line {number}: {error}")
    if problems or not records:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        reasons = problems[:_SHOWN] + more or ["it is empty"]
        raise UserError("\n  ".join([f"{source}: no file of lines 'question||step step #### answer'", *reasons]))
    try:
        write_text(out, to_json(records))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}): give another --out") from error
    return len(records)


def parse_line(line: str) -> dict[str, Any]:
    """The record of a line. Steps are its calculations or, where it has none, its sentences.

    Raises:
        UserError: with the reason alone.
    """
    question, end, rest = line.partition(_QUESTION_END)
    written, mark, answer = rest.rpartition(_ANSWER_MARK)
    if not end or not mark or not question.strip():
        raise UserError(f"a question, {_QUESTION_END} or {_ANSWER_MARK} is missing, found {line!r:.60}")
    steps = _BETWEEN_CALCULATIONS.split(written.strip()) if "<<" in written else split_sentences(written)
    return {"question": question.strip(), "steps": [step for step in steps if step], "answer": _number(answer.strip())}


def _number(text: str) -> int | float:
    found = single_number(text)
    if found is None:
        raise UserError(f"the answer after {_ANSWER_MARK} must be one number, found {text!r:.60}")
    return int(found.value) if found.value.denominator == 1 else float(found.value)
