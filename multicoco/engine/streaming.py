"""The training records of a run with `streaming`: what is known of them before they are read. See `data.stream`."""

from hashlib import sha256
from pathlib import Path

import numpy as np

from multicoco.config import RunConfig
from multicoco.data.example import Example
from multicoco.data.sources.load import tell_problems
from multicoco.data.sources.location import Location, locate
from multicoco.data.sources.mixture import Part
from multicoco.data.sources.of_run import how_to_read
from multicoco.data.sources.parse import RecordParser
from multicoco.data.sources.pieces import Pieces, files_of, pieces_of
from multicoco.data.stream import Policy, StreamedExamples
from multicoco.engine.ranks import agree, gather, rank, world_size
from multicoco.engine.remembered import recall, remember
from multicoco.errors import UserError

SEEN = 64  # records that are looked at before training
_ENDS = 2**20  # bytes at the beginning and at the end of a file that tell it from others


def open_stream(config: RunConfig, folder: Path) -> StreamedExamples:
    """The records of `train_path`, none of which is read. Each rank looks into a share of the files. Collective.

    Args:
        folder: where counted lines are remembered.

    Raises:
        UserError: they cannot be streamed, or there are none; on all ranks.
    """
    location, part = locate(config.data_dir, str(config.train_path)), Part(path=str(config.train_path))
    paths = agree(lambda: files_of(location), only_rank_0=True)
    own = agree(lambda: {path: _remembered(path, folder) for path in paths[rank() :: world_size()]})
    every = {path: pieces for of_rank in gather(own) for path, pieces in of_rank.items()}
    policy = Policy(config.on_bad_record == "skip", config.too_long == "skip", config.direct_answers)
    files = {path: every[path] for path in paths}
    stream = StreamedExamples(files, RecordParser(how_to_read(config, part)), policy, config.max_train_samples)
    if not len(stream):
        raise UserError(f"{location}: holds no records")
    if rank() == 0:
        print(f"{location}: {len(stream)} records in {len(stream.pieces)} pieces of {len(files)} files", flush=True)
    return stream


def first_of(stream: StreamedExamples, config: RunConfig) -> list[Example]:
    """Good ones of the first records, which show a mistake that all have. Collective.

    Raises:
        UserError: as `load_examples`; on all ranks.
    """

    def look() -> list[Example]:
        found = stream.first(SEEN)
        location = locate(config.data_dir, str(config.train_path))
        tell_problems(location, found.problems, found.checked, len(found.examples), config.on_bad_record)
        return found.examples

    examples: list[Example] = agree(look, only_rank_0=True)
    return examples


def stream_hash(location: Location) -> str:
    """What tells the files of a stream from others, of which not all is read: their names and sizes, and how they
    begin and end; parquet and Arrow end with a table of their contents. On the hub, their revision.

    Raises:
        UserError: they cannot be read.
    """
    told = []
    for path in files_of(location):
        if "://" in path:
            told.append(path)
            continue
        try:
            with open(path, "rb") as file:
                begins, size = file.read(_ENDS), file.seek(0, 2)
                file.seek(max(0, size - _ENDS))
                told.append(f"{Path(path).name} {size} {sha256(begins + file.read()).hexdigest()}")
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}") from error
    return sha256("\n".join(["stream", *told]).encode()).hexdigest()


def _remembered(path: str, folder: Path) -> Pieces:
    """The pieces of a file; the lines of one that has the size and times that it had are not counted again."""
    if path.endswith((".parquet", ".arrow", ".feather")):
        return pieces_of(path)
    found = Path(path).stat()
    key = f"{Path(path).absolute()} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    remembered = folder / f"{sha256(key.encode()).hexdigest()[:16]}.lines"
    if (known := recall(remembered, np.int64)) is not None and known.size % 2:
        return Pieces(known[: known.size // 2], known[known.size // 2 :])
    pieces = pieces_of(path)
    remember(remembered, np.concatenate(pieces))
    return pieces
