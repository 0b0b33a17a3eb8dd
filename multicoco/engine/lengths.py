"""Whether the examples fit a model whose sequences have a longest length: known before a run, not in its middle."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import NamedTuple

from multicoco.data.example import Example
from multicoco.data.loader import Encoder
from multicoco.engine.ranks import agree, gather, rank, world_size
from multicoco.errors import UserError
from multicoco.methods import Method
from multicoco.tracking import write_json


class Longest(NamedTuple):
    """Of examples: the length of the longest one in columns, its place, and how many are too long."""

    length: int
    place: int
    too_long: int


def check_training_lengths(
    limit: int,
    examples: Sequence[Example],
    encoder: Encoder,
    method: Method,
    stages: Iterable[int],
    remembered: Path | None = None,
) -> None:
    """Every example in every stage, at its longest. Each rank looks at its share. Collective.

    Args:
        limit: columns, of `models.checks.position_limit`.
        remembered: a file for what was found, of the same examples, model and method, and is not looked for again.

    Raises:
        UserError: names the longest one.
    """
    stages = list(stages)

    def look() -> Longest:
        longest = Longest(0, 0, 0)
        for place in range(rank(), len(examples), world_size()):
            tokens, _ = encoder(examples[place], method.asked)
            length = max(sum(method.extent(tokens, stage)) for stage in stages)
            longest = _longer(longest, Longest(length, place, length > limit))
        return longest

    found = agree(lambda: _recall(remembered), only_rank_0=True)
    if found is None:
        found = reduce(_longer, gather(agree(look)))
        if remembered is not None and rank() == 0:
            with suppress(OSError):  # it costs no more than time, at the next start
                write_json(remembered, found)
    if found.length > limit:
        raise UserError(
            f"train_path: record {examples[found.place].id!r} is {found.length} tokens long, and the model takes "
            f"{limit} (so are {found.too_long} of {len(examples)}): leave them out, shorten them, or take a model with "
            "more positions"
        )


def _longer(one: Longest, other: Longest) -> Longest:
    """Of two sets together; of equals the one that stands first."""
    longer = min(one, other, key=lambda found: (-found.length, found.place))
    return longer._replace(too_long=one.too_long + other.too_long)


def _recall(remembered: Path | None) -> Longest | None:
    if remembered is None or not remembered.is_file():
        return None
    try:
        return Longest(*map(int, json.loads(remembered.read_text(encoding="utf-8"))))
    except (OSError, TypeError, ValueError):  # then it is looked for
        return None


def check_prompt_lengths(
    limit: int,
    questions: Sequence[Example],
    encoder: Encoder,
    methods: Iterable[Method],
    stages: Iterable[int],
    max_new_tokens: int,
    extended_to: int = 0,
) -> None:
    """Every question in every stage, with room for its answer.

    Args:
        limit: columns, of `models.checks.position_limit`.
        extended_to: so many thoughts are asked for, too, where there are any.

    Raises:
        UserError: names the longest one, and how long its answer may be.
    """
    stages, lengths = list(stages), []
    methods = list(methods)
    for question in questions:
        encoded = [(method, encoder(question, method.asked)[0]) for method in methods]
        rows = [(method, method.prompt_row(tokens, stage)) for method, tokens in encoded for stage in stages]
        lengths.append(max(len(row) + _missing_thoughts(method, row, extended_to) for method, row in rows))
    longest = max(lengths)
    if longest + max_new_tokens > limit:
        room = limit - longest
        lower = f"lower generation.max_new_tokens to {room}" if room > 0 else "shorten it or leave it out"
        raise UserError(
            f"val_path: the prompt of record {questions[lengths.index(longest)].id!r} is {longest} tokens long; with "
            f"generation.max_new_tokens, {max_new_tokens}, that is more than the {limit} the model takes: {lower}, or "
            "take a model with more positions"
        )


def _missing_thoughts(method: Method, row: Sequence[int], wanted: int) -> int:
    there = row.count(method.latent_tokens.latent) if method.latent_tokens else 0
    return max(0, wanted - there) if there else 0
