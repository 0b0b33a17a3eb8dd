"""How an answer is read out of generated text, and when it is right.

The text after the last "Answer:" (any case) is looked at; without one, the last line that is not empty.

Multiple choice: the first rule that fits one choice decides, else there is no answer.
1. The form the model was asked for (`answer_format`): a letter ("B", "(b)", "B. blue"), an index ("1", "1: blue"), or a
   choice's text.
2. The other forms: text, then letter, then index.
3. The one choice whose text occurs in it as whole words.

Open questions: the first line. Texts are compared in lower case, without punctuation and articles at their ends.
"""

import re
from collections.abc import Sequence

from multicoco.data.example import Example

ANSWER_PREFIX = "Answer:"

_ANSWER = re.compile(r"answer\s*:", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Za-z])\)?(?![A-Za-z0-9'])\s*(?:[.:)-]|$)")
_INDEX = re.compile(r"\(?(\d+)\)?(?![\d])\s*(?:[.:)-](?!\d)|$)")
_WORD = re.compile(r"[^\W_]+")
_ARTICLE = re.compile(r"^(?:a|an|the)\s+")
_DIRECT_ANSWERS_FOR_FULL_CREDIT = 3  # A-OKVQA's direct-answer metric is min(annotators who gave it / 3, 1)


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation or article at the ends."""
    text = " ".join(text.lower().split()).strip(" .,:;!?\"'()[]*")
    return _ARTICLE.sub("", text)


def extract_answer(text: str, choices: Sequence[str], answer_format: str) -> int | str | None:
    """The answer in generated text: a choice's index, or for an open question its normalised words; None if unclear."""
    segment = _answer_segment(text)
    if not choices:
        return normalise(segment.split("\n")[0]) or None
    rules = {"text": _by_text, "letter": _by_letter, "index": _by_index}
    for rule in (rules.pop(answer_format), *rules.values(), _by_mention):
        if (index := rule(segment, choices)) is not None:
            return index
    return None


def is_correct(extracted: int | str | None, example: Example) -> bool | None:
    """Whether an extracted answer is right; None where the right answer is not known.

    A choice is right by its text, should two be the same. An open question with annotators' answers only is right with
    an answer that at least three of them gave.
    """
    if example.choices:
        if example.answer_index is None:
            return None
        texts = [normalise(choice) for choice in example.choices]
        return extracted is not None and texts[extracted] == texts[example.answer_index]
    if example.answer is not None:
        return extracted == normalise(example.answer)
    if not example.direct_answers:
        return None
    given = [normalise(answer) for answer in example.direct_answers]
    return given.count(extracted) >= _DIRECT_ANSWERS_FOR_FULL_CREDIT


def _answer_segment(text: str) -> str:
    *_, after = _ANSWER.split(text)
    lines = [line.strip() for line in after.strip().splitlines() if line.strip()]
    if not lines:
        return ""
    return "\n".join(lines) if _ANSWER.search(text) else lines[-1]


def _by_text(segment: str, choices: Sequence[str]) -> int | None:
    return _only(normalise(segment.split("\n")[0]), choices)


def _by_letter(segment: str, choices: Sequence[str]) -> int | None:
    match = _LETTER.match(segment)
    index = ord(match[1].upper()) - ord("A") if match else len(choices)
    return index if index < len(choices) else None


def _by_index(segment: str, choices: Sequence[str]) -> int | None:
    match = _INDEX.match(segment)
    return int(match[1]) if match and int(match[1]) < len(choices) else None


def _by_mention(segment: str, choices: Sequence[str]) -> int | None:
    def words(text: str) -> str:
        return f" {' '.join(_WORD.findall(text.lower()))} "

    mentioned = [choice for choice in choices if words(choice).strip() and words(choice) in words(segment)]
    return _only(normalise(mentioned[0]), choices) if len(mentioned) == 1 else None


def _only(text: str, choices: Sequence[str]) -> int | None:
    """The first choice with this normalised text."""
    texts = [normalise(choice) for choice in choices]
    return texts.index(text) if text and text in texts else None
