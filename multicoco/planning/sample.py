"""The records of a run that are at hand before it: what they are, how many, and how long."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens
from multicoco.data.example import Example
from multicoco.data.kept import BAD, KeptExamples, KeptRecords
from multicoco.data.prompt import Asked, prompts_of_run
from multicoco.data.sources import load_of_run
from multicoco.data.sources.load import open_records
from multicoco.data.sources.of_run import is_one, parts_of
from multicoco.engine.assembly import prompt_date
from multicoco.engine.keeping import folder_of, kept_paths
from multicoco.engine.records import lengths_file
from multicoco.engine.sizes import ExampleSizes, lengths_of
from multicoco.engine.streaming import open_stream
from multicoco.errors import UserError
from multicoco.methods import thinking_method
from multicoco.models.families import family_of
from multicoco.models.vocabulary import add_latent_words
from multicoco.planning.geometry import ModelGeometry

MEASURED_EXAMPLES = 1000


@dataclass(frozen=True)
class Sample:
    """The first records of a run.

    Attributes:
        examples: of these, their images unseen.
        tokens: likewise, with images of `tiles` each.
        sizes: lengths of all records that are trained on, where an earlier start has remembered them; else of these.
        records: how many the run has; None of a stream, which has not been counted.
        tiles: of an image, as planned for.
    """

    examples: Sequence[Example]
    tokens: Sequence[ExampleTokens]
    sizes: ExampleSizes
    records: int | None
    tiles: int


def look_at(config: RunConfig, model: ModelGeometry, tiles: int, asked: Asked) -> Sample | None:
    """None where the tokenizer or the records cannot be read from this machine's disk."""
    if not Path(config.model_id).is_dir() or config.train_path is None:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model_id, trust_remote_code=config.trust_remote_code)
        if thinking_method(config):
            add_latent_words(tokenizer)
        examples = first_of_run(config, config.train_path)
        family = family_of(model.config)
        prompt = prompts_of_run(config, tokenizer, family, config.prompt_date or "2000-01-01")  # as long as any other
        tokens = [prompt(x, asked, [family.written(tiles)] * len(x.images) if x.images else []) for x in examples]
        records = None if config.streaming else _count(config, config.train_path)
        sizes = _remembered(config, tokenizer, asked) or ExampleSizes.of(map(lengths_of, tokens))
        return Sample(examples, tokens, sizes, records, tiles)
    except (UserError, OSError, ValueError, KeyError):
        return None


def first_of_run(config: RunConfig, path: str) -> list[Example]:
    """Good ones, their images unseen."""
    if config.streaming:
        return open_stream(config, folder_of(config)).first(MEASURED_EXAMPLES, verify_images=False).examples
    return load_of_run(config, path, MEASURED_EXAMPLES, on_bad_record="skip", verify_images=False)


def _count(config: RunConfig, path: str) -> int:
    """Bad ones too."""
    parts = parts_of(config, path)
    n = 0.0
    for kept, (part, location) in zip(kept_paths(config, parts), parts, strict=True):
        n += part.weight * len(KeptRecords(kept) if kept.exists() else open_records(location))
    return min(int(n), config.max_train_samples or int(n))


def _remembered(config: RunConfig, tokenizer: PreTrainedTokenizerBase, asked: Asked) -> ExampleSizes | None:
    """By a start on the same day, or with `prompt_date`, of a run that leaves none of its good records out."""
    parts = parts_of(config, str(config.train_path))
    [path, *more] = kept_paths(config, parts)
    if config.streaming or more or not is_one(parts) or not path.exists():
        return None
    records = KeptRecords(path)
    good = np.flatnonzero((records.flags & BAD) == 0)[: config.max_train_samples]
    examples = KeptExamples(records, good)
    file = lengths_file(config, examples, "parts", prompt_date(config), asked, len(tokenizer))
    return ExampleSizes.recall(file, len(examples))
