"""Records in tables (parquet, Arrow, folders and hub ids of data sets), read through Hugging Face `datasets`.

The table stays on disk, mapped into memory: Arrow as it is, everything else by way of the Arrow copy that `datasets`
keeps in its cache. A record is made when it is asked for, and its pictures stay where they are until they are decoded.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multicoco.data.example import Example
from multicoco.data.sources.location import Location
from multicoco.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_ARROW_FILE = b"ARROW1"  # the first bytes of Arrow's file format; a stream has none


class TableRecords(Sequence[Any]):
    """The records of a table, each a dict, in its order.

    Raises:
        UserError: `datasets` is not installed, or finds no records there.
    """

    def __init__(self, location: Location):
        self.location = location
        self._table = open_table(location)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        """One record; pictures that are stored in it are `StoredInTable`."""
        record = self._table[index].to_pylist()[0]
        return {key: self._with_pictures_stored(value, index, (key,)) for key, value in record.items()}

    def _with_pictures_stored(self, value: Any, row: int, keys: tuple[str | int, ...]) -> Any:
        if isinstance(value, bytes):
            return StoredInTable(self.location, row, keys)
        if isinstance(value, dict):
            if isinstance(value.get("bytes"), bytes) and value.keys() <= {"bytes", "path"}:
                return StoredInTable(self.location, row, (*keys, "bytes"))
            return {key: self._with_pictures_stored(inner, row, (*keys, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._with_pictures_stored(inner, row, (*keys, place)) for place, inner in enumerate(value)]
        return value


@dataclass(frozen=True)
class StoredInTable:
    """A picture in a table: the way to it from the row, by keys and places."""

    location: Location
    row: int
    keys: tuple[str | int, ...]

    def __str__(self) -> str:
        return f"the image of record {self.row} in {self.location}"

    def read(self) -> bytes:
        column, *rest = self.keys
        value: Any = open_table(self.location)[self.row].column(column)[0].as_py()
        for key in rest:
            value = value[key]
        return bytes(value)


@cache
def open_table(location: Location) -> Dataset:
    """The mapped table, once in a process; its rows are Arrow tables of one row.

    Raises:
        UserError: see `TableRecords`.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{location}: parquet, Arrow and data sets are read by Hugging Face datasets, which is not installed: "
            "pip install multicoco[data]"
        ) from error
    try:
        table = _open(location)
    except UserError:
        raise
    except Exception as error:  # of datasets, its file systems and pyarrow
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{location}: cannot be read as a data set ({lines[0]:.300})") from error
    if isinstance(table, datasets.DatasetDict):
        if len(table) > 1:
            raise UserError(f"{location}: has the splits {', '.join(table)}: name one, {location.place}?split=...")
        table = next(iter(table.values()))
    if not len(table):
        raise UserError(f"{location}: holds no records")
    return table.with_format("arrow")


def open_stored(examples: Iterable[Example]) -> None:
    """Opens the tables that examples' pictures are in, so that processes forked from this one have them.

    Raises:
        UserError: see `TableRecords`.
    """
    for location in {image.location for e in examples for image in e.images if isinstance(image, StoredInTable)}:
        open_table(location)


def _open(location: Location) -> Any:
    import datasets

    if location.is_saved:
        if location.name is not None:
            raise UserError(f"{location}: a folder that datasets has saved has one configuration: leave name= out")
        saved = datasets.load_from_disk(location.place)
        if location.split is None:
            return saved
        if not isinstance(saved, datasets.DatasetDict) or location.split not in saved:
            splits = ", ".join(saved) if isinstance(saved, datasets.DatasetDict) else "no splits, only one table"
            raise UserError(f"{location}: there is no split {location.split!r}, there are {splits}")
        return saved[location.split]
    if location.on_hub or Path(location.place).is_dir():
        return datasets.load_dataset(location.place, location.name, split=location.split, revision=location.revision)
    files = [str(file) for file in location.files]
    if not files:
        raise UserError(f"{location}: there is no such file")
    if Path(location.place).suffix.lower() == ".parquet":
        return datasets.load_dataset("parquet", data_files=[glob.escape(file) for file in files], split="train")
    return datasets.concatenate_datasets([_map_arrow(file) for file in files])


def _map_arrow(file: str) -> Dataset:
    import datasets
    import pyarrow

    if not is_arrow_file(file):
        return datasets.Dataset.from_file(file)
    return datasets.Dataset(pyarrow.ipc.open_file(pyarrow.memory_map(file)).read_all())


def is_arrow_file(path: str) -> bool:
    """Whether Arrow in it is a file, with a table of its batches, and not a stream."""
    with open(path, "rb") as file:
        return file.read(len(_ARROW_FILE)) == _ARROW_FILE


def revision_of(location: Location) -> str:
    """What tells the content of a data set of the hub from other revisions of it: the name of its Arrow copy's folder.

    Raises:
        UserError: see `TableRecords`.
    """
    folders: Iterator[str] = (Path(file["filename"]).parent.name for file in open_table(location).cache_files)
    return next(folders, "")
