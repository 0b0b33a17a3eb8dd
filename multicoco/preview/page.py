"""What a run will be trained and asked on, as text."""

from collections.abc import Iterator, Sequence

from multicoco.config import RunConfig
from multicoco.curriculum import IGNORE_INDEX
from multicoco.data.order import Sizes, grouped, padding_share, shuffled
from multicoco.data.sources import read_of_run
from multicoco.data.sources.load import Loaded
from multicoco.engine.sizes import ExampleSizes
from multicoco.errors import UserError
from multicoco.evaluation.priors import asked_with
from multicoco.evaluation.report import aligned
from multicoco.methods import Method
from multicoco.preview.measured import Measured, Setup, evenly, measure, set_up, typical
from multicoco.preview.numbers import histogram
from multicoco.preview.rows import show_row

_BAD_SHOWN = 10
_MOST_STAGES = 12


def preview(config: RunConfig, n_measured: int, colours: bool) -> Iterator[str]:
    """Lines on the training and the validation records: counts, lengths, and rows as the model sees them.

    Args:
        n_measured: of how many examples the tokens are counted.

    Raises:
        UserError: data or model cannot be read; or, at the end, a record is bad and the run would stop at it.
    """
    setup = set_up(config)
    bad = 0
    for key, path, limit in (
        ("train_path", config.train_path if setup.trained else None, config.max_train_samples),
        ("val_path", config.val_path, config.max_val_samples),
    ):
        if path is None:
            continue
        loaded = read_of_run(config, path, limit)
        bad += len(loaded.problems)
        yield f"{key} {path}"
        yield from _counts(loaded, limit)
        if not loaded.examples:
            continue
        if key == "train_path" and setup.trained:
            measured = measure(evenly(n_measured, loaded.examples), setup, setup.trained)
            yield from _training(config, setup, setup.trained, measured, loaded, colours)
        else:
            some = evenly(n_measured, asked_with(config.eval_config.inputs, loaded.examples, config.seed))
            for name, method in setup.asked.items():
                yield from _questions(config, setup, name, method, measure(some, setup, method), colours)
        yield ""
    if bad and config.on_bad_record == "error":
        raise UserError(f"{bad} bad records, at which the run stops: fix them, or set on_bad_record: skip")


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
        yield from histogram("images per example", [len(example.images) for example in examples])
        yield from histogram("steps per example", [len(example.steps) for example in examples])


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
) -> Iterator[str]:
    yield from _lengths(measured, len(loaded.examples))
    epochs = _epochs_of_stages(config, method, len(loaded.examples))
    shown = evenly_spaced(list(epochs), _MOST_STAGES)
    sizes = ExampleSizes(*zip(*(map(_parts, measured)), strict=True))
    orders = ("shuffled", "grouped")
    table = [["stage", "epochs", "passes", "longest row", "with loss, mean", "too long", *orders]]
    for stage in shown:
        rows = [method.train_row(one.tokens, stage, epochs[stage][0], one.example.id) for one in measured]
        lengths = [sum(method.extent(one.tokens, stage)) for one in measured]
        learned = sum(label != IGNORE_INDEX for _, labels in rows for label in labels) / len(rows)
        too_long = sum(setup.limit is not None and length > setup.limit for length in lengths)
        span = f"{epochs[stage][0]}-{epochs[stage][-1]}"
        paddings = [f"{share:.1%}" for share in _paddings(config, sizes.at(method, stage))]
        cells = (stage, span, method.passes(stage), max(lengths), f"{learned:.1f}", too_long, *paddings)
        table.append([*map(str, cells)])
    takes = "any number of" if setup.limit is None else f"at most {setup.limit}"
    yield f"stages ({len(shown)} of {len(epochs)} shown; the model takes {takes} tokens; too long ones stop the run):"
    yield from (f"  {line}".rstrip() for line in aligned(table))
    now = "grouped" if config.group_by_length else "shuffled"
    yield f"  ({', '.join(orders)}: padding of batches of {config.batch_size}, by group_by_length; this run is {now})"
    one = typical(measured)
    for stage in shown:
        ids, labels = method.train_row(one.tokens, stage, epochs[stage][0], one.example.id)
        yield f"stage {stage}, record {one.example.id!r}, {len(ids)} tokens:"
        yield from show_row(ids, labels, setup.latent, setup.reader.tokenizer, colours)


def _parts(one: Measured) -> tuple[int, list[int], int]:
    return len(one.tokens.prompt), [len(step) for step in one.tokens.steps], len(one.tokens.answer)


def _paddings(config: RunConfig, sizes: Sizes) -> tuple[float, float]:
    """Of an epoch in random order, and grouped by length."""
    seed, global_batch = f"{config.seed}/0", config.batch_size * config.gradient_accumulation_steps
    orders = shuffled(len(sizes), seed), grouped(sizes, seed, global_batch)
    random, by_length = (padding_share(sizes, order, config.batch_size) for order in orders)
    return random, by_length


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
    if too_long := sum(setup.limit is not None and length + room > setup.limit for length in lengths):
        yield f"{too_long} of {len(measured)} leave no room for {room} new tokens, the model takes {setup.limit} in all"
    one = typical(measured)
    row = method.prompt_row(one.tokens, setup.stage)
    yield f"as {name} asks record {one.example.id!r} in stage {setup.stage}:"
    yield from show_row(row, [IGNORE_INDEX] * len(row), setup.latent, setup.reader.tokenizer, colours)
