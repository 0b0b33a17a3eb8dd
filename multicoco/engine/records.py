"""The records of a run on all ranks: held where they are few, else kept or streamed."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from multicoco.config import RunConfig
from multicoco.data.example import Example
from multicoco.data.kept import UNANSWERED, Kept, picked
from multicoco.data.sources import load_of_run
from multicoco.data.sources.of_run import is_one, limit_of_part, parts_of
from multicoco.data.sources.tables import open_stored
from multicoco.data.stream import StreamedExamples
from multicoco.data.verified import VerifiedImages
from multicoco.engine.keeping import IMAGES, LENGTHS, folder_of, keep_parts, mix_kept, open_kept
from multicoco.engine.ranks import agree
from multicoco.engine.resume import about_examples
from multicoco.engine.streaming import first_of, open_stream


def load_records(config: RunConfig, path: str | None, limit: int | None) -> Sequence[Example]:
    """The examples of a `train_path` or `val_path`, none if it is null. Of KEPT_FROM records and more, each is read
    from disk when it is wanted, and what was verified at an earlier start is not decoded again. Collective.

    Images of a kind that only a source of another package knows are held in memory whatever their number.

    Raises:
        UserError: as `load_of_run`; on all ranks.
    """
    if path is None:
        return []
    parts = agree(lambda: parts_of(config, path), only_rank_0=True)
    files = agree(lambda: keep_parts(config, parts, limit), only_rank_0=True)
    if files is None:
        examples = agree(lambda: _held(config, path, limit), only_rank_0=True)
        agree(lambda: open_stored(examples))  # once a rank, not in each of its workers
        return examples
    of_part = limit_of_part(limit, parts)
    kept = [open_kept(config, location, file, of_part) for (_, location), file in zip(parts, files, strict=True)]
    if is_one(parts):
        return kept[0]
    mixture = mix_kept(config, kept, [part.weight for part, _ in parts])
    return picked(mixture, np.arange(len(mixture))[:limit])


def _held(config: RunConfig, path: str, limit: int | None) -> list[Example]:
    """Read and verified; of images that an earlier start has decoded, only sizes and times are looked at."""
    verified = VerifiedImages(folder_of(config) / IMAGES)
    try:
        return load_of_run(config, path, limit, verify=verified.verify)
    finally:
        verified.save([verified.taken()])


def load_training_records(config: RunConfig) -> Sequence[Example]:
    """The examples of `train_path`; with `streaming`, none of them has been read. Collective.

    Raises:
        UserError: as `load_of_run`; on all ranks.
    """
    if config.streaming:
        return open_stream(config, folder_of(config))
    return load_records(config, config.train_path, config.max_train_samples)


def at_hand(config: RunConfig, examples: Sequence[Example]) -> Sequence[Example]:
    """Training examples that are looked at before training: all, or of a stream the first ones. Collective.

    Raises:
        UserError: as `load_examples`; on all ranks.
    """
    return first_of(examples, config) if isinstance(examples, StreamedExamples) else examples


def without_answer(examples: Sequence[Example]) -> Sequence[Example]:
    """Those that have none; kept ones are not read for it."""
    if isinstance(examples, Kept):
        return examples.picked(np.flatnonzero(examples.flags & UNANSWERED))
    return [example for example in examples if example.answer is None]


def lengths_file(config: RunConfig, examples: Sequence[Example], *about: object) -> Path | None:
    """Where the lengths of kept examples are remembered, as rows (`those_that_fit`) or in parts (`measure_sizes`); None
    for others.

    Args:
        about: what they depend on beside the config, such as the date that prompts are written with.
    """
    if not isinstance(examples, Kept):
        return None
    key = json.dumps([about_examples(config), examples.about, *map(str, about)], sort_keys=True)
    return folder_of(config) / f"{sha256(key.encode()).hexdigest()[:16]}{LENGTHS}"
