"""Whether the examples fit: known before a run, not in its middle. No example is ever cut."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens
from multicoco.data.example import Example
from multicoco.data.kept import picked
from multicoco.data.loader import Encoder
from multicoco.data.stream import TooLong
from multicoco.engine.ranks import agree, gather, in_turn, own_places, rank
from multicoco.engine.remembered import recall, remember
from multicoco.errors import UserError
from multicoco.methods import Method

_NAMED = 5  # examples that a message names


def longest_allowed(config: RunConfig, positions: int | None) -> int | None:
    """Tokens that a training example may have; None: any number.

    Args:
        positions: of the model, `models.checks.position_limit`.
    """
    return min((most for most in (config.max_length, positions) if most is not None), default=None)


def those_that_fit(
    config: RunConfig,
    positions: int | None,
    examples: Sequence[Example],
    encoder: Encoder,
    method: Method,
    stages: Iterable[int],
    remembered: Path | None = None,
) -> Sequence[Example]:
    """The training examples that are short enough in every stage, at their longest; so all stages have the same ones.

    Collective: every rank measures a share of them, and all come to the same result.

    Args:
        positions: as of `longest_allowed`.
        stages: all that the run can come to.
        remembered: a file for the lengths of these examples with this model and method, so that they are not measured
            again; its folder is there.

    Raises:
        UserError: `too_long` is error and one is too long; or all are; or the method refuses one.
    """
    most = longest_allowed(config, positions)
    if most is None and not method.may_refuse:
        return examples
    stages = list(stages)
    lengths = agree(lambda: recall(remembered, np.int32, len(examples)), only_rank_0=True)
    if lengths is None:
        places = own_places(len(examples)).tolist()
        own = agree(lambda: [_longest_row_of(examples[i], encoder, method, stages) for i in places])
        lengths = in_turn(gather(np.array(own, np.int32)))
        if rank() == 0:
            remember(remembered, lengths)
    if most is None:
        return examples
    agree(lambda: _say_what_is_too_long(config, most, examples, lengths.tolist()), only_rank_0=True)
    return picked(examples, np.flatnonzero(lengths <= most))


def _longest_row_of(example: Example, encoder: Encoder, method: Method, stages: Iterable[int]) -> int:
    tokens = encoder.tokens(example, method.asked)
    try:
        return longest_row(method, tokens, stages)
    except UserError as error:
        raise UserError(f"train_path: record {example.id!r}: {error}") from error


def longest_row(method: Method, tokens: ExampleTokens, stages: Iterable[int]) -> int:
    """Tokens of a training example in the stage in which it has most."""
    return max(method.extent(tokens, stage).length for stage in stages)


def refuse_too_long(
    config: RunConfig, positions: int | None, method: Method, stages: Iterable[int], tokens: ExampleTokens
) -> None:
    """Of an example that was not there to be measured with the others.

    Raises:
        TooLong: it is longer than `longest_allowed`.
    """
    most = longest_allowed(config, positions)
    if most is not None and (length := longest_row(method, tokens, stages)) > most:
        raise TooLong(f"has {length} tokens, more than {most}, {_limit(config, most)}")


def _limit(config: RunConfig, most: int) -> str:
    return "max_length" if most == config.max_length else "all that the model takes"


def _say_what_is_too_long(config: RunConfig, most: int, examples: Sequence[Example], lengths: Sequence[int]) -> None:
    too_long = sorted((-length, place) for place, length in enumerate(lengths) if length > most)  # the longest first
    if not too_long:
        return
    named = ", ".join(f"{examples[place].id!r} ({-length})" for length, place in too_long[:_NAMED])
    more = ", ..." if len(too_long) > _NAMED else ""
    longer = f"longer than {most} tokens, {_limit(config, most)}"
    said = f"{len(too_long)} of {len(examples)} records are {longer} ({named}{more})"
    if len(too_long) == len(examples) or config.too_long == "error":
        leave = "" if len(too_long) == len(examples) else "set too_long: skip to leave them out, "
        remedy = "raise max_length" if most == config.max_length else "take a model with more positions"
        raise UserError(f"train_path: {said}: {leave}shorten them, or {remedy}")
    print(f"train_path: {said}: left out, as too_long is skip", flush=True)


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
        encoded = [(method, encoder.tokens(question, method.asked)) for method in methods]
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
    there = method.count_thoughts(row)
    return max(0, wanted - there) if there else 0
