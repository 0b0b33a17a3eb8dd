"""Reasoning steps from written rationales."""

import re
from collections.abc import Sequence

import sentencex  # type: ignore[import-untyped]

from multicoco.config.data import StepsFrom
from multicoco.errors import UserError

# Pieces that end no sentence though the library ends one there: a title, the number of an item, and a stop within a
# word ("example.Com"). Other scripts write their stops without white space.
_OPEN_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof)\.|^\W*[0-9]{1,3}[.)])\s*$|[!-~]$")

_LINE_END = re.compile(r"(?<=[.!?])[ \t]*\n")  # at which the library ends no sentence
_ITEM = re.compile(
    r"^[ \t]*(?:(?:step[ \t]+)?[0-9]{1,3}[.):][ \t]|[-*\u2022][ \t])[ \t]*", re.MULTILINE | re.IGNORECASE
)
_TAG = re.compile(r"<(?P<name>[A-Za-z][\w-]*)(?:\s[^<>]*)?>(?P<inside>.*?)</(?P=name)\s*>", re.DOTALL)


def split_sentences(text: str) -> list[str]:
    """Splits a text of any script into sentences, none empty; together they give the text, but for white space.

    A sentence need not begin with a capital (annotators often write none).
    """
    sentences: list[str] = []
    open_end = False
    for piece in sentencex.segment("en", _LINE_END.sub(" ", text)):
        if open_end:
            sentences[-1] += piece
        else:
            sentences.append(piece)
        open_end = _OPEN_END.search(sentences[-1]) is not None
    return [sentence.strip() for sentence in sentences if sentence.strip()]


def split_reasoning(text: str, steps_from: StepsFrom) -> tuple[str, ...]:
    """One written reasoning as steps: its sentences, its lines, the items of a list in it, what stands in its tags, or,
    for "rationales", the whole.

    Raises:
        UserError: with the reason alone: there is no such list or tag, or text outside of tags.
    """
    if steps_from == "sentences":
        return tuple(split_sentences(text))
    if steps_from == "lines":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    if steps_from == "list":
        return _items(text)
    if steps_from == "tag":
        return _tagged(text)
    return (text.strip(),) if text.strip() else ()


def _items(text: str) -> tuple[str, ...]:
    """The items of a numbered or bulleted list, without number and bullet; what stands before the first is a step."""
    before, *items = _ITEM.split(text)
    if text.strip() and not items:
        raise UserError(f"steps_from is list, but the reasoning has no items ('1. ...', '- ...'): {text!r:.60}")
    return tuple(step.strip() for step in (before, *items) if step.strip())


def _tagged(text: str) -> tuple[str, ...]:
    """What stands in the outermost tags, in their order."""
    if outside := _TAG.sub("", text).strip():
        raise UserError(
            f"steps_from is tag, but of the reasoning this is in no tag (<step>...</step>): {outside!r:.60}"
        )
    return tuple(match["inside"].strip() for match in _TAG.finditer(text) if match["inside"].strip())


def rationale_steps(rationales: Sequence[str], steps_from: StepsFrom) -> tuple[str, ...]:
    """The steps of the first rationale, see `split_reasoning`, or all rationales."""
    if steps_from == "rationales":
        return tuple(rationales)
    return split_reasoning(rationales[0], steps_from) if rationales else ()
