"""Reasoning steps from written rationales."""

import re
from collections.abc import Sequence

import sentencex  # type: ignore[import-untyped]

from multicoco.data.sources.source import StepsFrom

# Pieces that end no sentence though the library ends one there: a title, the number of an item, and a stop within a
# word ("example.Com"). Other scripts write their stops without white space.
_OPEN_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof)\.|^\W*[0-9]{1,3}[.)])\s*$|[!-~]$")


def split_sentences(text: str) -> list[str]:
    """Splits a text of any script into sentences, none empty; together they give the text, but for white space.

    A sentence need not begin with a capital (annotators often write none).
    """
    sentences: list[str] = []
    open_end = False
    for piece in sentencex.segment("en", text):
        if open_end:
            sentences[-1] += piece
        else:
            sentences.append(piece)
        open_end = _OPEN_END.search(sentences[-1]) is not None
    return [sentence.strip() for sentence in sentences if sentence.strip()]


def rationale_steps(rationales: Sequence[str], steps_from: StepsFrom) -> tuple[str, ...]:
    """The sentences of the first rationale, or all rationales."""
    if steps_from == "sentences" and rationales:
        return tuple(split_sentences(rationales[0]))
    return tuple(rationales)
