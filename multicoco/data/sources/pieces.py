"""Files of records that are read piece by piece, in any order: row groups of parquet, batches of Arrow, lines of JSON.

How many records each piece has is known without reading them, but for JSON Lines, whose lines are counted.
"""

import codecs
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multicoco.data.sources.files import parse_json
from multicoco.data.sources.location import Location
from multicoco.data.sources.tables import is_arrow_file
from multicoco.errors import UserError

LINES = 1024  # records in a piece of JSON Lines
_OPEN_FILES = 64  # at a time, by a process
_SUFFIXES = (".parquet", ".arrow", ".feather", ".jsonl", ".ndjson", ".json")
_BOM = codecs.BOM_UTF8
_LONGEST_LINE = 2**26  # bytes that are looked at to tell


class Unreadable(UserError):
    """A file, not one of its records."""


class Pieces(NamedTuple):
    """Of a file.

    Attributes:
        records: of each piece.
        starts: of JSON Lines, the byte that each piece begins at, and where the last one ends; else empty.
    """

    records: NDArray[np.int64]
    starts: NDArray[np.int64]


def files_of(location: Location) -> list[str]:
    """The files of a place, in their order; on the hub, as fsspec finds them.

    Raises:
        UserError: there are none that are read in pieces.
    """
    paths = _files_of(location)
    if not paths:
        raise UserError(f"{location}: there is no such file")
    for path in paths:
        if not path.endswith(_SUFFIXES) or (path.endswith(_SUFFIXES[1:]) and location.on_hub):
            raise UserError(
                f"{location}: {path} cannot be streamed: parquet, Arrow and JSON Lines can; leave streaming out, write "
                "it as one of these or, on the hub, name its parquet copy, revision=refs/convert/parquet"
            )
        if path.endswith(_SUFFIXES[3:]) and not _is_lines(path):
            raise UserError(f"{path}: is not JSON Lines, which alone of JSON can be streamed: write a record a line")
    return paths


def pieces_of(path: str) -> Pieces:
    """The pieces of a file.

    Raises:
        Unreadable: it cannot be read.
    """
    try:
        if path.endswith(".parquet"):
            metadata = _parquet(path, os.getpid()).metadata
            records = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        elif path.endswith((".arrow", ".feather")):
            records = [batch.num_rows for batch in _arrow(path)]
        else:
            return _lines(path)
    except Exception as error:  # of pyarrow and file systems
        raise _unreadable(path, error) from error
    return Pieces(np.array(records, np.int64), np.empty(0, np.int64))


def read_piece(path: str, pieces: Pieces, place: int) -> Sequence[Any]:
    """The records of one piece of a file, each made when it is asked for; among them a UserError for a line that is
    none.

    Raises:
        Unreadable: it cannot be read.
    """
    try:
        if path.endswith(".parquet"):
            return _Rows(_parquet(path, os.getpid()).read_row_group(place, use_threads=False))
        if path.endswith((".arrow", ".feather")):
            return _Rows(_arrow(path)[place])
        start, end = pieces.starts[place : place + 2].tolist()
        with open(path, "rb") as file:
            file.seek(start)
            return _Lines([line for line in file.read(end - start).split(b"\n") if line.strip()])
    except Exception as error:  # of pyarrow and file systems
        raise _unreadable(path, error) from error


class _Rows(Sequence[Any]):
    """Of an Arrow table or batch."""

    def __init__(self, table: Any):
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        return self.table.slice(index, 1).to_pylist()[0]


class _Lines(Sequence[Any]):
    def __init__(self, lines: list[bytes]):
        self.lines = lines

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: Any) -> Any:
        try:
            return parse_json(self.lines[index].decode())
        except (ValueError, RecursionError) as error:
            return UserError(f"is not valid JSON ({error})")


def _files_of(location: Location) -> list[str]:
    if location.is_mixture:
        raise UserError(f"{location}: a mixture cannot be streamed: leave streaming out, or name one of its sets")
    if location.is_saved:
        folder = Path(location.place) / (location.split or "")
        if not (folder / "state.json").is_file():
            splits = ", ".join(json.loads((Path(location.place) / "dataset_dict.json").read_text())["splits"])
            raise UserError(f"{location}: name one of its splits, {location.place}?split=...: {splits}")
        state = json.loads((folder / "state.json").read_text())
        return [str(folder / file["filename"]) for file in state["_data_files"]]
    if not location.on_hub and not Path(location.place).is_dir():
        return [str(file) for file in location.files]
    import datasets

    try:
        builder = datasets.load_dataset_builder(location.place, location.name, revision=location.revision)
    except Exception as error:  # of datasets and its file systems
        raise _unreadable(str(location), error) from error
    of_splits = {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    split = location.split or (next(iter(of_splits)) if len(of_splits) == 1 else None)
    if split not in of_splits:
        raise UserError(f"{location}: name one of its splits, ?split=...: {', '.join(of_splits)}")
    return of_splits[split]


@lru_cache(maxsize=_OPEN_FILES)
def _parquet(path: str, process: int) -> Any:
    """Opened by this process: forks do not share what comes over a network."""
    import pyarrow.parquet

    if "://" not in path:
        return pyarrow.parquet.ParquetFile(path)
    import fsspec

    return pyarrow.parquet.ParquetFile(fsspec.open(path, "rb").open())


@lru_cache(maxsize=_OPEN_FILES)
def _arrow(path: str) -> Any:
    """The batches, which stay on disk until they are read."""
    import pyarrow

    opened = pyarrow.ipc.open_file if is_arrow_file(path) else pyarrow.ipc.open_stream
    return opened(pyarrow.memory_map(path)).read_all().to_batches()


def _is_lines(path: str) -> bool:
    """Told by the first line: of `.json` it must be a record, of `.jsonl` it may be a bad one."""
    try:
        with open(path, "rb") as file:
            first = file.readline(_LONGEST_LINE).removeprefix(_BOM).strip()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not path.endswith(".json"):
        return not first.startswith(b"[")
    try:
        record = json.loads(first)
    except ValueError:
        return False
    return isinstance(record, dict) and not all(isinstance(value, dict) for value in record.values())


def _lines(path: str) -> Pieces:
    counts, starts = list[int](), list[int]()
    with open(path, "rb") as file:
        place = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(place)
        left = 0  # lines that the piece still takes
        for line in file:
            if line.strip():
                if not left:
                    counts.append(0)
                    starts.append(place)
                    left = LINES
                counts[-1] += 1
                left -= 1
            place += len(line)
    return Pieces(np.array(counts, np.int64), np.array([*starts, place], np.int64))


def _unreadable(path: str, error: Exception) -> Unreadable:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Unreadable(f"{path}: cannot be read ({lines[0]:.300})")
