"""A row as the model sees it: what of it is prompt, thoughts, written, and has a loss."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

from transformers import PreTrainedTokenizerBase

from multicoco.curriculum import IGNORE_INDEX, LatentTokens

Kind = Literal["prompt", "latent", "written", "loss"]

_COLOURS: dict[Kind, str] = {"prompt": "2", "latent": "35", "written": "33", "loss": "32"}  # of ANSI terminals
_PLAIN = "\x1b[0m"
_RUN = 8  # so many of one token in a row are shown as one, with their number


def segments(ids: Sequence[int], labels: Sequence[int], latent: LatentTokens | None) -> list[tuple[Kind, list[int]]]:
    """A row, (T,) each, in parts of one kind.

    latent: thoughts, and the tokens around them; loss: what is learned; written: what stands behind the first of
    either, and is not learned; prompt: what is before.
    """
    thoughts = {latent.start, latent.latent, latent.end} if latent else set()
    kinds: list[Kind] = []
    for token, label in zip(ids, labels, strict=True):
        if label != IGNORE_INDEX:
            kinds.append("loss")
        elif token in thoughts:
            kinds.append("latent")
        else:
            kinds.append("written" if kinds and kinds[-1] != "prompt" else "prompt")
    pairs = groupby(zip(kinds, ids, strict=True), key=lambda pair: pair[0])
    return [(kind, [token for _, token in part]) for kind, part in pairs]


def show_row(
    ids: Sequence[int],
    labels: Sequence[int],
    latent: LatentTokens | None,
    tokenizer: PreTrainedTokenizerBase,
    colours: bool,
) -> Iterator[str]:
    """Lines: each part with its kind in front, and coloured by it; a line's end within it is shown."""
    for kind, part in segments(ids, labels, latent):
        lines = _text(part, tokenizer).replace("\n", "\\n\n").removesuffix("\n").split("\n")
        for place, line in enumerate(lines):
            shown = f"\x1b[{_COLOURS[kind]}m{line}{_PLAIN}" if colours else line
            yield f"  {kind if place == 0 else '':8}{shown}"


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """As the tokenizer writes it, control tokens included."""
    text, waiting = "", list[int]()

    def decoded(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)) if tokens else ""

    for token, run in groupby(ids):
        n = len(list(run))
        if n < _RUN:
            waiting += [token] * n
        else:
            text += f"{decoded(waiting)}[{decoded([token])} x {n}]"
            waiting = []
    return text + decoded(waiting)
