"""What guessing gives, for questions that come with choices and for those that list their options in their text."""

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

_LABEL = re.compile(r"(?:^|\s)\(?([A-Z])[).:]\s+")  # "(A) red (B) blue", "A. red"
_LAST_SENTENCE = re.compile(r"[^.!?\n]*\?\s*$")
_OR = re.compile(r",?\s+or\s+")
_LISTED = re.compile(r",\s+(?=(?:an?\s+|the\s+)?[^\s,]+(?:,|$))")  # what follows is one word, with its article
_TRUE_OR_FALSE = re.compile(r"\btrue\s+or\s+false\b|\byes\s+or\s+no\b", re.IGNORECASE)
_WORD = re.compile(r"\w+")


def chance(samples: Sequence[dict[str, Any]]) -> float | None:
    """The expected accuracy of guessing among each question's options; None if a question has none, or without any.

    Args:
        samples: lines of a samples file, or what of them has choices, question and gold.
    """
    counts = [len(sample["choices"]) or listed_options(sample["question"], sample["gold"]) for sample in samples]
    return fmean(1 / count for count in counts) if counts and all(counts) else None


def listed_options(question: str, answer: str | None) -> int:
    """How many options an open question lists in its text: "(A) red (B) blue", "True or false: ...", "... a lempus or a
    bompus?" at its end; 0 for none. What looks like a list is one only if the answer is just one of the options."""
    if answer is None:
        return 0
    said = {word.lower() for word in _WORD.findall(answer)}
    labels = _LABEL.findall(question)
    if len(labels) > 1 and labels == [chr(ord("A") + place) for place in range(len(labels))]:
        texts = [text.strip(" \n.,;") for text in _LABEL.split(question)[2::2]]
        return len(labels) if answer.strip("(). ") in (*labels, *texts) else 0
    if (match := _TRUE_OR_FALSE.search(question)) is not None:
        options = _OR.split(match.group())
    elif (match := _LAST_SENTENCE.search(question)) is not None and len(parts := _OR.split(match.group())) == 2:
        options = [*_LISTED.split(parts[0]), parts[1]]
    else:
        return 0
    # of the words before an "or", the last one is the option's
    ends = [words[-1].lower() for option in options if (words := _WORD.findall(option))]
    return len(options) if sum(end in said for end in ends) == 1 else 0
