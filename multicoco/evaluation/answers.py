"""How an answer is read out of generated text, and when it is right.

The rules hold when a model babbles: a text gives an answer only if it says one thing in a known form, else none
("unparsed").

The answer is the line that follows "Answer:" (any case); without one, what follows "answer is"; without either, the
last line that is not empty, without hashes in front, unless the text was cut off. Where several are marked they must
agree.

Multiple choice: the line is, after words such as "it is",
1. in the form that the model was asked for, a label: a letter ("B", "(b)", "B. blue") or an index ("1", "1 : blue"),
   with nothing but its own choice's text behind it; or
2. a choice's text: exactly, or the only one that is the same in lower case, without punctuation at the ends and without
   an article in front.
A sentence or a "because ..." may follow that names no other choice and takes nothing back.

Open questions: the whole line, compared in lower case, without punctuation at the ends and an article in front; or,
where numbers are judged, the only number in it.
"""

import re
from collections.abc import Sequence

from multicoco.config.data import Judge
from multicoco.data.example import Example
from multicoco.data.numbers import single_number

_MARKERS = (re.compile(r"\banswer[\s*]*:", re.IGNORECASE), re.compile(r"\banswer\s+is\b", re.IGNORECASE))
# GSM8K's "#### 72", and no heading
_NUMBER_MARKERS = (re.compile(rf"{_MARKERS[0].pattern}|#{{2,}}(?=\s*[-+$]*\s?\.?[0-9])", re.IGNORECASE), _MARKERS[1])
_HASHES = re.compile(r"^#{2,}\s+(?=\S)")  # "### Tom is a lempus.", as models of the Coconut authors' code say it
_LEAD_IN = re.compile(
    r"^(?:\s*(?:it['\u2019]s|(?:it|this|that)\s+(?:is|must\s+be)"
    r"|(?:(?:the|my)\s+)?(?:(?:correct|right|best|final)\s+)?(?:answer|option|choice)(?:\s+is)?)\b[\s:]*)+",
    re.IGNORECASE,
)
# a label, and what is behind it; neither "A.M.", "A-frame" nor "3:30"
_LABEL = r"[\s(\[*\"':]*({})(?![.:,'\u2019-]?\w)(.*)"
_LABELS = {"letter": re.compile(_LABEL.format("[A-Za-z]")), "index": re.compile(_LABEL.format("[0-9]{1,3}"))}
_LABEL_WORDS = {"letter": re.compile(r"\b[A-Z]\b"), "index": re.compile(r"\b[0-9]{1,3}\b")}
_CLOSING = " \t.,:;!)]*\"'"
_AFTERTHOUGHT = re.compile(r"[.!;]\s+|[.,;]?\s+(?=(?:because|since)\b)", re.IGNORECASE)
_DOUBT = re.compile(
    r"\?|n['\u2019]t\b|\b(?:no|not|nor|neither|never|none|or|either|both|maybe|perhaps|possibly|probably|might|could"
    r"|wrong|incorrect|false|actually|instead|rather|wait|but|however|unless|except|without|if|other|another|cannot)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:a|an|the)\s+")
# the point of ".5" is no punctuation, nor the sign of "5!"
_PUNCTUATION = re.compile(r"""^(?:(?!\.\d)[\s.,:;!?"'()\[\]*])+|(?:[\s.,:;?"'()\[\]*]|(?<!\d)!)+$""")
_WORD = re.compile(r"(?:[^\W_]|(?<=\d)[.,:](?=\d))+")  # "1.5" and "3:30" are one word
DIRECT_ANSWERS_FOR_FULL_CREDIT = 3  # A-OKVQA's direct-answer metric is min(annotators who gave it / 3, 1)


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends, no article in front; ":)" and its like stay."""
    text = _flat(text.lower())
    bare = _ARTICLE.sub("", _PUNCTUATION.sub("", text))
    return _PUNCTUATION.sub("", bare) or text


def extract_answer(
    text: str, choices: Sequence[str], answer_format: str, *, truncated: bool = False, judge: Judge = "text"
) -> int | str | None:
    """The answer in generated text.

    Args:
        answer_format: "letter", "index" or "text": how the prompt shows the choices and wants them named.
        truncated: the text ended at its limit, not by itself.
        judge: how answers to the question are compared, if it is an open one.

    Returns:
        A choice's index, or for an open question the normalised words or the number; None if unclear.
    """
    segments = _segments(text, truncated, judge)
    if not segments:
        return None

    def read(line: str, cut_off: bool = False) -> int | str | None:
        if choices:
            return _read_choice(line, choices, answer_format, cut_off)
        return None if cut_off or not line else _read_open(line, judge)

    *earlier, last = map(_first_line, segments)
    answer = read(last, cut_off=truncated and "\n" not in segments[-1].lstrip())
    for line in filter(None, earlier):
        other = read(line)
        # an earlier line that gives none must not have named another one
        if other != answer and (other is not None or not _is_clear(line, answer, choices, answer_format)):
            return None
    return answer


def answer_line(text: str, *, truncated: bool = False, judge: Judge = "text") -> str:
    """The line that `extract_answer` reads the answer from, as it is written; "" without one."""
    return next(map(_first_line, reversed(_segments(text, truncated, judge))), "")


def is_correct(extracted: int | str | None, example: Example) -> bool | None:
    """Whether an extracted answer is right; None where the right answer is not known.

    A choice is right by its text, should two be the same. An open question with annotators' answers is right with
    an answer that at least three of them gave.
    """
    if example.choices:
        if example.answer_index is None:
            return None
        right = _flat(example.choices[example.answer_index])
        return isinstance(extracted, int) and _flat(example.choices[extracted]) == right
    if example.direct_answers:
        given = [normalise(answer) for answer in example.direct_answers]
        return sum(answer == extracted for answer in given) >= DIRECT_ANSWERS_FOR_FULL_CREDIT
    if example.answer is not None:
        if example.judge == "number" and (number := single_number(example.answer)) is not None:
            said = None if extracted is None else single_number(str(extracted))
            return said is not None and said.equals(number)
        return extracted == normalise(example.answer)
    return None


def _flat(text: str) -> str:
    return " ".join(text.split())


def _marked(text: str, markers: Sequence[re.Pattern[str]]) -> list[str] | None:
    """What follows each mark, up to the next; None without any."""
    return next((segments for marker in markers if (segments := marker.split(text)[1:])), None)


def _segments(text: str, truncated: bool, judge: Judge) -> list[str]:
    """What may hold the answer: all that is marked as it, else the last line, if the text ended by itself."""
    marked = _marked(text, _NUMBER_MARKERS if judge == "number" else _MARKERS)
    if marked is not None:
        return marked
    return [] if truncated else [_HASHES.sub("", line.strip()) for line in text.strip().splitlines()[-1:]]


def _first_line(segment: str) -> str:
    return next(iter(segment.strip().splitlines()), "")


def _read_open(line: str, judge: Judge) -> str | None:
    if judge == "text":
        return normalise(line)
    number = None if _DOUBT.search(line) else single_number(line)
    return None if number is None else number.written


def _read_choice(line: str, choices: Sequence[str], answer_format: str, cut_off: bool) -> int | None:
    """The choice that a line names. Of one that was cut off, only a label that nothing stands behind is clear."""
    if cut_off:
        whole = re.fullmatch(r"[\s(*]*(?:[A-Z]|[0-9])", line) and (len(choices) <= 10 or not line[-1].isdigit())
        return _by_label(line, choices, answer_format) if whole else None
    for said in (line, _LEAD_IN.sub("", line)):
        if (index := _one_choice(said, choices, answer_format)) is not None:
            return index
        for cut in _AFTERTHOUGHT.finditer(said):
            if (index := _one_choice(said[: cut.start()], choices, answer_format)) is not None:
                return index if _is_clear(said[cut.end() :], index, choices, answer_format) else None
    return None


def _one_choice(said: str, choices: Sequence[str], answer_format: str) -> int | None:
    by_text = _by_text(said, choices)
    by_label = _by_label(said, choices, answer_format)
    if by_label is None:
        return by_text
    # "a" is also a word; "A" and "1" are what was asked for, whatever the choices' texts are
    return None if said.islower() and by_text not in (None, by_label) else by_label


def _by_text(said: str, choices: Sequence[str]) -> int | None:
    if not said.strip():  # nothing said is not the empty choice
        return None
    exact = [i for i, choice in enumerate(choices) if _flat(choice) == _flat(said)]
    if exact:
        return exact[0]
    alike = [i for i, choice in enumerate(choices) if choice.strip() and normalise(choice) == normalise(said)]
    if len({_flat(choices[i]) for i in alike}) != 1 or (_asks(said) and not _asks(choices[alike[0]])):
        return None
    return alike[0]


def _asks(text: str) -> bool:
    return "?" in text


def _by_label(said: str, choices: Sequence[str], answer_format: str) -> int | None:
    match = _LABELS[answer_format].fullmatch(said) if answer_format in _LABELS else None
    if match is None:
        return None
    label, behind = match.groups()
    index = int(label) if label.isdigit() else ord(label.upper()) - ord("A")
    if index >= len(choices):
        return None
    behind = behind.strip(_CLOSING)
    if not behind:
        return index
    named = _by_text(behind.lstrip(_CLOSING + "(-\u2013\u2014"), choices)
    return index if named is not None and _flat(choices[named]) == _flat(choices[index]) else None


def _is_clear(rest: str, index: int | str | None, choices: Sequence[str], answer_format: str) -> bool:
    """Whether another text leaves a choice standing."""
    if not isinstance(index, int) or _DOUBT.search(rest):
        return False
    own = _flat(choices[index])
    others = [_words(choice) for choice in choices if _flat(choice) != own]
    if any(words.strip() and words in _words(rest) for words in others):
        return False
    pattern = _LABEL_WORDS.get(answer_format)
    labels = pattern.findall(rest) if pattern else []
    named = [int(label) if label.isdigit() else ord(label) - ord("A") for label in labels]
    return all(other == index or other >= len(choices) for other in named)


def _words(text: str) -> str:
    return f" {' '.join(_WORD.findall(normalise(text)))} "
