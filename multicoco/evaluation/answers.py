"""How an answer is read out of generated text, and when it is right.

The answer is what follows the last "Answer:" (any case); without one, the last "answer is"; without either, it is the
last line that is not empty.

Multiple choice: the first rule that fits one choice decides, else there is no answer. Rules 1 and 2 look at the
answer's first line.
1. The form the model was asked for (`answer_format`): a letter ("B", "(b)", "B. blue"), an index ("1", "1 : blue") or
   a choice's text.
2. The other forms: text, then letter (a capital, since "a" is also an article), then index.
3. The one choice whose text occurs as whole words in the answer or, if nothing marked the answer, in the whole text.

Open questions: the answer's first line. Texts are compared in lower case, without punctuation at their ends and without
an article in front.
"""

import re
from collections.abc import Sequence
from functools import partial

from multicoco.data.example import Example

ANSWER_PREFIX = "Answer:"

_MARKERS = (re.compile(r"\banswer[\s*]*:", re.IGNORECASE), re.compile(r"\banswer\s+is\b", re.IGNORECASE))
# a label alone, or before a choice's text; neither "A.M.", "A-frame" nor "3:30"
_LABEL = r"[\s(\[*\"':]*({})[)\]*\"']*(?:\s*[:)\]](?!\d)|\s*\.(?!\w)|[\s.!,;]*$)"
_LETTER, _CAPITAL, _INDEX = (re.compile(_LABEL.format(label)) for label in ("[A-Za-z]", "[A-Z]", "[0-9]{1,3}"))
_WORD = re.compile(r"(?:[^\W_]|(?<=\d)[.,:](?=\d))+")  # "1.5" and "3:30" are one word
_ARTICLE = re.compile(r"^(?:a|an|the)\s+")
_PUNCTUATION = " .,:;!?\"'()[]*"
_DIRECT_ANSWERS_FOR_FULL_CREDIT = 3  # A-OKVQA's direct-answer metric is min(annotators who gave it / 3, 1)


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends, no article in front; ":)" and its like stay."""
    text = " ".join(text.lower().split())
    return _ARTICLE.sub("", text.strip(_PUNCTUATION)).strip(_PUNCTUATION) or text


def extract_answer(text: str, choices: Sequence[str], answer_format: str) -> int | str | None:
    """The answer in generated text: a choice's index, or for an open question its normalised words; None if unclear."""
    answer = _marked_answer(text)
    lines = [line for line in (text if answer is None else answer).splitlines() if line.strip()]
    if not lines:
        return None
    line = lines[-1 if answer is None else 0]
    if not choices:
        return normalise(line)
    rules = {
        "text": _by_text,
        "letter": partial(_by_label, _LETTER if answer_format == "letter" else _CAPITAL),
        "index": partial(_by_label, _INDEX),
    }
    for rule in (rules.pop(answer_format), *rules.values()):
        if (index := rule(line, choices)) is not None:
            return index
    for passage in [line, text] if answer is None else [answer]:
        if (index := _by_mention(passage, choices)) is not None:
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


def _marked_answer(text: str) -> str | None:
    for marker in _MARKERS:
        *before, after = marker.split(text)
        if before:
            return after
    return None


def _by_text(line: str, choices: Sequence[str]) -> int | None:
    texts = [normalise(choice) for choice in choices]
    return texts.index(normalise(line)) if normalise(line) in texts else None


def _by_label(pattern: re.Pattern[str], line: str, choices: Sequence[str]) -> int | None:
    match = pattern.match(line)
    if match is None:
        return None
    index = int(match[1]) if match[1].isdigit() else ord(match[1].upper()) - ord("A")
    return index if index < len(choices) else None


def _by_mention(passage: str, choices: Sequence[str]) -> int | None:
    def words(text: str) -> str:
        return f" {' '.join(_WORD.findall(text.lower()))} "

    texts = [normalise(choice) for choice in choices]
    mentioned = {text for text in texts if words(text).strip() and words(text) in words(passage)}
    return texts.index(mentioned.pop()) if len(mentioned) == 1 else None
