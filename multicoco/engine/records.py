"""The records of a run on all ranks: read once, verified by all of them together, and remembered for later starts."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from multicoco import __version__
from multicoco.config import RunConfig
from multicoco.data.example import Example
from multicoco.data.kept import KeptExamples, KeptRecords, NotKept, keep, picked
from multicoco.data.sources import load_of_run
from multicoco.data.sources.load import open_records, tell_problems
from multicoco.data.sources.location import Location, locate
from multicoco.data.sources.of_run import how_to_read
from multicoco.data.sources.parse import parse_records
from multicoco.data.sources.tables import open_stored, open_table
from multicoco.data.stream import StreamedExamples
from multicoco.data.verified import VerifiedImages
from multicoco.engine.ranks import agree, gather, rank, world_size
from multicoco.engine.resume import about_examples, data_hash
from multicoco.engine.streaming import first_of, open_stream
from multicoco.errors import UserError
from multicoco.registry import names

IMAGES = "images.npy"  # in `folder_of` a config: `VerifiedImages`
KEPT_FROM = 5_000  # records; fewer are read anew at every start, and held by every rank
_ROUND = 100_000  # records that are verified before what is verified is saved
_BLOCK = 256  # records that a thread takes at a time


def load_records(config: RunConfig, path: str | None, limit: int | None) -> list[Example]:
    """The examples of `val_path`, or of a small or mixed `train_path`, none if it is null, checked on rank 0.
    Collective.

    Raises:
        UserError: as `load_examples`; on all ranks.
    """
    if path is None:
        return []
    examples: list[Example] = agree(lambda: load_of_run(config, path, limit), only_rank_0=True)
    agree(lambda: open_stored(examples))  # once a rank, not in each of its workers
    return examples


def load_training_records(config: RunConfig) -> Sequence[Example]:
    """The examples of `train_path`. Of KEPT_FROM records and more, each is read from disk when it is wanted, and what
    was verified at an earlier start is not decoded again; with `streaming`, none of them has been read. Collective.

    Mixtures, questions asked without their choices, and images of a kind that only a source of another package knows
    are held in memory whatever their number.

    Raises:
        UserError: as `load_examples`; on all ranks.
    """
    if config.streaming:
        return open_stream(config, folder_of(config))
    location, limit = locate(config.data_dir, str(config.train_path)), config.max_train_samples
    path = agree(lambda: _kept(config, location), only_rank_0=True)
    if path is None:
        return load_records(config, config.train_path, limit)
    if location.is_table:
        agree(lambda: open_table(location))  # once a rank, not in each of its workers
    records = agree(lambda: _opened(path))
    verified = VerifiedImages(folder_of(config) / IMAGES, stored_in=path.stem)
    chosen, looked = np.empty(0, np.int64), 0
    problems: list[tuple[int, str]] = []
    bar: tqdm[NoReturn]  # over nothing: it is moved on by hand
    with tqdm(total=limit or len(records), desc=f"checking {path.stem}", disable=None if rank() == 0 else True) as bar:
        while looked < len(records) and (limit is None or len(chosen) < limit):
            taken = min(_ROUND, len(records) - looked, _ROUND if limit is None else limit - len(chosen))
            bad = _verify(records, range(looked, looked + taken), verified, bar)
            good = np.setdiff1d(np.arange(looked, looked + taken), [place for place, _ in bad], assume_unique=True)
            chosen, problems, looked = np.concatenate([chosen, good]), problems + bad, looked + taken
    lines = [problem for _, problem in problems]
    agree(lambda: tell_problems(location, lines, looked, len(chosen), config.on_bad_record), only_rank_0=True)
    return KeptExamples(records, chosen)


def at_hand(config: RunConfig, examples: Sequence[Example]) -> Sequence[Example]:
    """Training examples that are looked at before training: all, or of a stream the first ones. Collective.

    Raises:
        UserError: as `load_examples`; on all ranks.
    """
    return first_of(examples, config) if isinstance(examples, StreamedExamples) else examples


def without_answer(examples: Sequence[Example]) -> Sequence[Example]:
    """Those that have none. Each rank looks at a share. Collective."""
    share = range(rank(), len(examples), world_size())
    of_ranks = gather([place for place in share if examples[place].answer is None])
    return picked(examples, np.array(sorted(chain(*of_ranks)), np.int64))


def folder_of(config: RunConfig) -> Path:
    """What is remembered of data, for all runs of an `output_dir`."""
    return Path(config.output_dir) / ".examples"


def lengths_file(config: RunConfig, examples: Sequence[Example], *about: object) -> Path | None:
    """Where the lengths of kept examples are remembered, as rows (`those_that_fit`) or in parts (`measure_sizes`); None
    for others.

    Args:
        about: what they depend on beside the config, such as the date that prompts are written with.
    """
    if not isinstance(examples, KeptExamples):
        return None
    key = json.dumps([about_examples(config), len(examples), *map(str, about)], sort_keys=True)
    return examples.records.path.with_suffix(f".{sha256(key.encode()).hexdigest()[:16]}.lengths")


def _kept(config: RunConfig, location: Location) -> Path | None:
    """The file that the records are kept in, written if it is not there; None if they are not kept."""
    if location.is_mixture or config.direct_answers:
        return None
    how = how_to_read(config)
    said = {key: str(value) for key, value in how.items()} | {"image_dir": str(how["image_dir"].absolute())}
    key = json.dumps([__version__, data_hash(location), names("sources"), said, str(location)])
    path = folder_of(config) / f"{sha256(key.encode()).hexdigest()[:16]}.examples"
    if path.exists():
        return path
    records = open_records(location)
    if len(records) < KEPT_FROM:
        return None
    parsed = parse_records(records, **how)
    try:
        keep(path, tqdm(parsed, total=len(records), desc=f"reading {Path(location.place).name}", disable=None))
    except (NotKept, OSError) as error:
        print(f"{location}: cannot be kept in {path.parent} ({error}): every rank holds it in memory", flush=True)
        return None
    return path


def _opened(path: Path) -> KeptRecords:
    try:
        return KeptRecords(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and have all hosts share its folder") from error


def _verify(
    records: KeptRecords, places: range, verified: VerifiedImages, bar: "tqdm[NoReturn]"
) -> list[tuple[int, str]]:
    """Each rank decodes the images of its share, as far as they are new. Collective.

    Returns: places that hold no good example, and why.
    """

    def check(block: range) -> list[tuple[int, str]]:
        bad = []
        for place in block:
            label, result = records[place]
            try:
                if isinstance(result, UserError):
                    raise result
                for image in result.images:
                    verified.verify(image)
            except UserError as error:
                bad.append((place, f"{label}: {error}"))
        bar.update(len(block) * world_size())
        return bad

    share = places[rank() :: world_size()]
    blocks = [share[start : start + _BLOCK] for start in range(0, len(share), _BLOCK)]
    with ThreadPoolExecutor() as pool:
        own = [problem for found in pool.map(check, blocks) for problem in found]
    noted = gather((own, verified.taken()))
    if rank() == 0:
        verified.save([entries for _, entries in noted])
    return sorted(problem for problems, _ in noted for problem in problems)
