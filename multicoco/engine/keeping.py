"""Large sets of records: read once for all later starts, their images verified by all ranks together."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from multicoco import __version__
from multicoco.config import RunConfig
from multicoco.data.example import Example
from multicoco.data.kept import BAD, SHOWN, KeptExamples, KeptMixture, KeptRecords, NotKept, keep
from multicoco.data.sources.ids import numbers_of
from multicoco.data.sources.load import open_records, tell_problems
from multicoco.data.sources.location import Location
from multicoco.data.sources.mixture import Part, copy_id
from multicoco.data.sources.of_run import as_asked, asks_openly, how_to_read
from multicoco.data.sources.parse import parse_records
from multicoco.data.sources.tables import open_table
from multicoco.data.verified import VerifiedImages
from multicoco.engine.ranks import agree, gather, rank, world_size
from multicoco.engine.remembered import recall, remember
from multicoco.engine.resume import data_hash
from multicoco.errors import UserError
from multicoco.files import sweep
from multicoco.registry import names

IMAGES = "images.npy"  # in `folder_of` a config: `VerifiedImages`
LENGTHS = ".lengths"  # what files end with that are there too: `records.lengths_file`
_FORMAT = 3  # of `data.kept`
KEPT_FROM = 5_000  # records of all parts; fewer are read anew at every start, and held by every rank
_ROUND = 100_000  # records that are verified before what is verified is saved
_BLOCK = 256  # records that a thread takes at a time


def folder_of(config: RunConfig) -> Path:
    """What is remembered of data, for all runs of an `output_dir`."""
    return Path(config.output_dir) / ".examples"


def keep_parts(config: RunConfig, parts: Sequence[tuple[Part, Location]], limit: int | None) -> list[Path] | None:
    """The files that the sets of a mixture, or the one of another place, are kept in, written if they are not there;
    None if they are few, or not all can be kept.

    Raises:
        UserError: there are no records; or one has no direct answers and is asked for them.
    """
    if limit is not None and limit < KEPT_FROM:
        return None
    paths = kept_paths(config, parts)
    if all(path.exists() for path in paths):
        return paths
    of_parts = [open_records(location) for _, location in parts]
    if sum(map(len, of_parts)) < KEPT_FROM:
        return None
    sweep(folder_of(config))
    for path, records, (part, location) in zip(paths, of_parts, parts, strict=True):
        parsed = parse_records(records, how_to_read(config, part))
        if asks_openly(config, part):
            parsed = ((label, as_asked(x, location) if isinstance(x, Example) else x) for label, x in parsed)
        name = Path(location.place).name
        try:
            keep(path, tqdm(parsed, total=len(records), desc=f"reading {name}", disable=None))
        except (NotKept, OSError) as error:
            print(f"{location}: cannot be kept in {path.parent} ({error}): every rank holds it in memory", flush=True)
            return None
    return paths


def kept_paths(config: RunConfig, parts: Sequence[tuple[Part, Location]]) -> list[Path]:
    """The files that the sets are kept in, if they are."""
    return [folder_of(config) / f"{_key(config, part, location)}.examples" for part, location in parts]


def open_kept(config: RunConfig, location: Location, path: Path, limit: int | None) -> KeptExamples:
    """The good examples of a file that records are kept in. What was verified at an earlier start is not decoded again.
    Collective.

    Raises:
        UserError: as `load_examples`; on all ranks.
    """
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


def mix_kept(config: RunConfig, parts: Sequence[KeptExamples], weights: Sequence[float]) -> KeptMixture:
    """Sets together, each example as often as its set's weight says. Collective."""
    mixture = KeptMixture.of(parts, weights)
    if len(parts) > 1:
        mixture.picks["number"] = agree(lambda: _own_numbers(folder_of(config), mixture), only_rank_0=True)
    return mixture


def _own_numbers(folder: Path, mixture: KeptMixture) -> NDArray[np.int32]:
    """What tells the ids of different sets apart (`ids.numbers_of`), remembered."""
    remembered = folder / f"{sha256(mixture.about.encode()).hexdigest()[:16]}.numbers"
    if (known := recall(remembered, np.int32, len(mixture))) is not None:
        return known
    ids = [[example.id for example in part] for part in mixture.parts]
    copied = (copy_id(ids[part][place], copy) for part, place, copy, _ in mixture.picks.tolist())
    numbers = np.array(numbers_of(copied), np.int32)
    remember(remembered, numbers)
    return numbers


def _key(config: RunConfig, part: Part, location: Location) -> str:
    """What tells the examples of a set, as a run reads them, from others."""
    options = how_to_read(config, part)
    said = {key: str(value) for key, value in vars(options).items()} | {"image_dir": str(options.image_dir.absolute())}
    about = [__version__, _FORMAT, data_hash(location), names("sources"), said, str(location)]
    openly = ["openly"] if asks_openly(config, part) else []
    return sha256(json.dumps(about + openly).encode()).hexdigest()[:16]


def _opened(path: Path) -> KeptRecords:
    try:
        return KeptRecords(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and have all hosts share its folder") from error


def _verify(
    records: KeptRecords, places: range, verified: VerifiedImages, bar: "tqdm[NoReturn]"
) -> list[tuple[int, str]]:
    """Each rank decodes the images of its share, as far as they are new; a record without any is not read. Collective.

    Returns: places that hold no good example, and why.
    """

    def check(block: list[int]) -> list[tuple[int, str]]:
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

    to_see = np.flatnonzero(records.flags[places.start : places.stop] & (BAD | SHOWN)) + places.start
    bar.update(len(places) - len(to_see))
    share = to_see[rank() :: world_size()].tolist()
    blocks = [share[start : start + _BLOCK] for start in range(0, len(share), _BLOCK)]
    with ThreadPoolExecutor() as pool:
        own = [problem for found in pool.map(check, blocks) for problem in found]
    noted = gather((own, verified.taken(), verified.has_changed))
    if rank() == 0:
        if any(changed for _, _, changed in noted):
            _forget_lengths(verified.path.parent)
        verified.save([entries for _, entries, _ in noted])
    return sorted(problem for problems, _, _ in noted for problem in problems)


def _forget_lengths(folder: Path) -> None:
    """A picture of another size is written with another number of tokens."""
    for remembered in folder.glob(f"*{LENGTHS}"):
        remembered.unlink(missing_ok=True)
