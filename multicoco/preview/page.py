"""What a run will be trained and asked on, as text."""

import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence

from multicoco.config import RunConfig
from multicoco.curriculum import IGNORE_INDEX
from multicoco.data.example import Example
from multicoco.data.loader import check_donors
from multicoco.data.order import grouped, padding_share, shuffled
from multicoco.data.sources import read_of_run, require_answers, require_steps
from multicoco.data.sources.load import Loaded
from multicoco.data.sources.location import locate
from multicoco.engine.keeping import folder_of
from multicoco.engine.lengths import longest_allowed, longest_row
from multicoco.engine.sizes import ExampleSizes, lengths_of
from multicoco.engine.streaming import open_stream
from multicoco.errors import UserError
from multicoco.evaluation.priors import asked_with
from multicoco.evaluation.report import aligned
from multicoco.methods import Method
from multicoco.preview.measured import Measured, Setup, evenly, measure, set_up, typical
from multicoco.preview.numbers import histogram
from multicoco.preview.rows import show_row

_BAD_SHOWN = 10
_DIGITS = re.compile(r"[-+$]*[0-9][0-9.,]*%?")
_MOST_STAGES = 12


def preview(config: RunConfig, n_measured: int, colours: bool) -> Iterator[str]:
    """Lines on the training and the validation records: counts, lengths, and rows as the model sees them.

    Args:
        n_measured: of how many examples the tokens are counted; of a stream no others are read.

    Raises:
        UserError: data or model cannot be read; or, at the end, the run would stop: at a record that is bad or too
            long, or because there is nothing to learn from.
    """
    setup = set_up(config)
    bad = too_long = 0
    learned_from: Sequence[Example] = ()
    for key, path, limit in (
        ("train_path", config.train_path if setup.trained else None, config.max_train_samples),
        ("val_path", config.val_path, config.max_val_samples),
    ):
        if path is None:
            continue
        if config.streaming and key == "train_path":
            loaded, limit = open_stream(config, folder_of(config)).first(n_measured), n_measured
        else:
            loaded = read_of_run(config, path, limit)
        bad += len(loaded.problems)
        yield f"{key} {path}"
        yield from _counts(loaded, limit)
        if not loaded.examples:
            continue
        if key == "train_path" and setup.trained:
            learned_from = loaded.examples
            measured = measure(evenly(n_measured, loaded.examples), setup, setup.trained)
            too_long = yield from _training(config, setup, setup.trained, measured, loaded, colours)
        else:
            some = evenly(n_measured, asked_with(config.eval_config.inputs, loaded.examples, config.seed))
            for name, method in setup.asked.items():
                yield from _questions(config, setup, name, method, measure(some, setup, method), colours)
        yield ""
    if setup.trained and learned_from:
        _check_purpose(config, setup.trained, learned_from)
    if bad and config.on_bad_record == "error":
        raise UserError(f"{bad} bad records, at which the run stops: fix them, or set on_bad_record: skip")
    if too_long and config.too_long == "error":
        raise UserError(
            f"{too_long} examples are too long, at which the run stops: shorten them, or set too_long: skip"
        )


def _check_purpose(config: RunConfig, method: Method, examples: Sequence[Example]) -> None:
    """As training does at its start."""
    location = locate(config.data_dir, str(config.train_path))
    require_answers([example for example in examples if example.answer is None], len(examples), location)
    if method.needs_steps:
        require_steps(examples, location, config.trained_method)
    if method.borrows:
        check_donors(len(examples), "train_path")


def _counts(loaded: Loaded, limit: int | None) -> Iterator[str]:
    examples, problems = loaded.examples, loaded.problems
    unseen = loaded.records - loaded.checked
    cut = f", the other {unseen} not read (limit {limit})" if unseen else ""
    yield f"{loaded.records} records: {len(examples)} examples, {len(problems)} bad{cut}"
    yield from (f"  {problem}" for problem in problems[:_BAD_SHOWN])
    if len(problems) > _BAD_SHOWN:
        yield f"  and {len(problems) - _BAD_SHOWN} more"
    if examples:
        without = sum(example.answer is None for example in examples)
        yield f"{without} without an answer, {sum(bool(example.choices) for example in examples)} with choices"
        yield from _numbers_as_texts(examples)
        yield from histogram("images per example", [len(example.images) for example in examples])
        yield from histogram("steps per example", [len(example.steps) for example in examples])
        if any(example.earlier for example in examples):
            name = "earlier turns per example, read without their reasoning and not learned"
            yield from histogram(name, [len(example.earlier) for example in examples])


def _numbers_as_texts(examples: Sequence[Example]) -> Iterator[str]:
    """Answers that look as if they were meant as numbers."""
    open_ones = [example for example in examples if not example.choices and example.judge == "text"]
    answers = [example.answer for example in open_ones if example.answer and _DIGITS.fullmatch(example.answer)]
    if answers:
        said = f"{len(answers)} answers, such as {answers[0]!r:.60}, are judged as texts"
        yield f"{said}: answer_type: number reads numbers"


def _lengths(measured: Sequence[Measured], n: int) -> Iterator[str]:
    yield f"tokens, of {len(measured)} of {n} examples:" if len(measured) < n else "tokens, of all examples:"
    parts = {
        "of images": [one.image_tokens for one in measured],
        "of the rest of the prompt": [len(one.tokens.prompt) - one.image_tokens for one in measured],
        "of the written reasoning": [sum(map(len, one.tokens.steps)) for one in measured],
        "of the answer": [len(one.tokens.answer) for one in measured],
    }
    for name, values in parts.items():
        yield from histogram(name, values)


def _training(
    config: RunConfig, setup: Setup, method: Method, measured: Sequence[Measured], loaded: Loaded, colours: bool
) -> Generator[str, None, int]:
    """Returns: how many examples are too long."""
    yield from _lengths(measured, len(loaded.examples))
    most = longest_allowed(config, setup.positions)
    epochs = _epochs_of_stages(config, method, loaded.records if config.streaming else len(loaded.examples))
    shown = evenly_spaced(list(epochs), _MOST_STAGES)
    table = [["stage", "epochs", "passes", "longest row", "with loss, mean", "too long"]]
    for stage in shown:
        rows = [method.train_row(one.tokens, stage, epochs[stage][0], one.example.id) for one in measured]
        lengths = [method.extent(one.tokens, stage).length for one in measured]
        learned = sum(label != IGNORE_INDEX for _, labels in rows for label in labels) / len(rows)
        too_long = sum(most is not None and length > most for length in lengths)
        span = f"{epochs[stage][0]}-{epochs[stage][-1]}"
        cells = (stage, span, method.passes(stage), max(lengths), f"{learned:.1f}", too_long)
        table.append([*map(str, cells)])
    takes = "any number of" if most is None else f"at most {most}"
    yield f"stages ({len(shown)} of {len(epochs)} shown; an example may have {takes} tokens):"
    yield from (f"  {line}".rstrip() for line in aligned(table))
    yield from _paddings(config, method, measured, shown)
    too_long = sum(most is not None and longest_row(method, one.tokens, epochs) > most for one in measured)
    if too_long:
        what = "left out of all stages" if config.too_long == "skip" else "at which the run stops"
        yield f"{too_long} of {len(measured)} examples are too long in some stage, {what}"
    one = typical(measured)
    for stage in shown:
        drawn = one.tokens, stage, epochs[stage][0], _usual_id(method, one, stage, epochs[stage][0])
        for what, (ids, labels) in {"": method.train_row(*drawn), **method.further_rows(*drawn)}.items():
            yield f"stage {stage}, record {one.example.id!r}, {what}{', ' if what else ''}{len(ids)} tokens:"
            yield from show_row(ids, labels, setup.latent, setup.reader.tokenizer, colours)
    return too_long


def _paddings(config: RunConfig, method: Method, measured: Sequence[Measured], stages: Sequence[int]) -> Iterator[str]:
    """Of an epoch in random order, and grouped by length."""
    sizes = ExampleSizes.of(lengths_of(one.tokens) for one in measured)
    seed, global_batch = f"{config.seed}/0", config.batch_size * config.gradient_accumulation_steps
    table = [["stage", "group_by_length: false", "group_by_length: true"]]
    for stage in stages:
        of_stage = sizes.at(method, stage)
        orders = shuffled(len(measured), seed), grouped(of_stage, seed, global_batch)
        table.append([str(stage), *(f"{padding_share(of_stage, order, config.batch_size):.1%}" for order in orders)])
    yield f"padding in batches of {config.batch_size}, were these all examples:"
    yield from (f"  {line}".rstrip() for line in aligned(table))


def _usual_id(method: Method, one: Measured, stage: int, epoch: int) -> str:
    """By which it is laid out as most records are, whatever its own draws for it (`coconut.uniform_prob`)."""
    names: list[str] = [one.example.id, *"abcdefgh"]
    rows = {name: method.train_row(one.tokens, stage, epoch, name) for name in names}
    numbers = Counter((tuple(ids), tuple(labels)) for ids, labels in rows.values())
    return max(rows, key=lambda name: numbers[tuple(rows[name][0]), tuple(rows[name][1])])  # the first of equals


def _epochs_of_stages(config: RunConfig, method: Method, n_examples: int) -> dict[int, list[int]]:
    """With the steps of one process; the stages in their order."""
    steps = -(-n_examples // (config.batch_size * config.gradient_accumulation_steps))
    epochs: dict[int, list[int]] = {}
    for epoch in range(config.num_epochs):
        for part in method.parts(epoch, steps):
            epochs.setdefault(part.stage, []).append(epoch)
    return epochs


def evenly_spaced(stages: Sequence[int], most: int) -> list[int]:
    """So many of them at most, the first and the last among them."""
    if len(stages) <= most:
        return list(stages)
    return [stages[place * (len(stages) - 1) // (most - 1)] for place in range(most)]


def _questions(
    config: RunConfig, setup: Setup, name: str, method: Method, measured: Sequence[Measured], colours: bool
) -> Iterator[str]:
    lengths = [len(method.prompt_row(one.tokens, setup.stage)) for one in measured]
    yield from histogram(f"tokens of the prompts that {name} asks in stage {setup.stage}", lengths)
    room = config.generation.max_new_tokens
    positions, most = setup.positions, config.max_length
    if too_long := sum(positions is not None and length + room > positions for length in lengths):
        yield f"{too_long} of {len(measured)} leave no room for {room} new tokens, the model takes {positions} in all"
    if longer := sum(most is not None and length > most for length in lengths):
        yield f"{longer} of {len(measured)} are longer than max_length, {most}, and are asked whole"
    one = typical(measured)
    row = method.prompt_row(one.tokens, setup.stage)
    yield f"as {name} asks record {one.example.id!r} in stage {setup.stage}:"
    yield from show_row(row, [IGNORE_INDEX] * len(row), setup.latent, setup.reader.tokenizer, colours)
