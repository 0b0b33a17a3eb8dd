"""Whether the examples fit a model whose sequences have a longest length: known before a run, not in its middle."""

from collections.abc import Iterable, Sequence

from multicoco.data.example import Example
from multicoco.data.loader import Encoder
from multicoco.errors import UserError
from multicoco.methods import Method


def check_training_lengths(
    limit: int, examples: Sequence[Example], encoder: Encoder, method: Method, stages: Iterable[int]
) -> None:
    """Every example in every stage, at its longest.

    Args:
        limit: columns, of `models.checks.position_limit`.

    Raises:
        UserError: names the longest one.
    """
    stages = list(stages)
    lengths = []
    for example in examples:
        tokens, _ = encoder(example, method.asked)
        lengths.append(max(sum(method.extent(tokens, stage)) for stage in stages))
    longest = max(lengths)
    if longest > limit:
        too_long = sum(length > limit for length in lengths)
        raise UserError(
            f"train_path: record {examples[lengths.index(longest)].id!r} is {longest} tokens long, and the model takes "
            f"{limit} (so are {too_long} of {len(lengths)}): leave them out, shorten them, or take a model with "
            "more positions"
        )


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
