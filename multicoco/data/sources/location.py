"""Where records lie: a file, a folder of a data set, or a data set of the Hugging Face hub."""

import glob
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from multicoco.errors import UserError

_HUB = "hf://"
_OPTIONS = ("split", "name", "revision")
_TABLES = (".parquet", ".arrow", ".feather")
_MIXTURES = (".yaml", ".yml")
_SAVED = ("dataset_dict.json", "state.json")  # one of them is in every folder that `save_to_disk` writes


@dataclass(frozen=True)
class Location:
    """Files of records, told apart by what is there.

    Attributes:
        place: a path, a pattern of paths (`train-*.parquet`), or owner/name on the hub.
        on_hub: whether it is the latter.
        split, name, revision: of a data set: which records, of which configuration, as they were when.
    """

    place: str
    on_hub: bool = False
    split: str | None = None
    name: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        options = [f"{key}={value}" for key in _OPTIONS if (value := getattr(self, key)) is not None]
        return (_HUB if self.on_hub else "") + self.place + ("?" + "&".join(options) if options else "")

    @property
    def files(self) -> list[Path]:
        """The local files that it consists of, sorted; none on the hub."""
        if self.on_hub:
            return []
        path = Path(self.place)
        if path.is_dir():
            return sorted(file for file in path.rglob("*") if file.is_file())
        return [path] if path.exists() else sorted(map(Path, glob.glob(self.place)))

    @property
    def is_table(self) -> bool:
        """Whether Hugging Face `datasets` reads it: everything but a JSON file."""
        return self.on_hub or Path(self.place).is_dir() or Path(self.place).suffix.lower() in _TABLES

    @property
    def is_mixture(self) -> bool:
        """Whether it is a file that lists other places (`mixture`)."""
        return not self.is_table and Path(self.place).suffix.lower() in _MIXTURES

    @property
    def is_saved(self) -> bool:
        """Whether it is a folder that `datasets` has saved."""
        return not self.on_hub and any((Path(self.place) / name).is_file() for name in _SAVED)


def locate(data_dir: str | Path, path: str | Path) -> Location:
    """A `train_path` or `val_path` in the folder that it is relative to.

    Args:
        path: of a file or a folder, or `hf://owner/name`; a data set's may end in `?split=train`, with `name=` (of the
            configuration) and `revision=` beside it.

    Raises:
        UserError: an option behind the `?` is unknown, or is given to what has none.
    """
    written = str(path)
    place, mark, query = written.partition("?")
    if mark and not written.startswith(_HUB) and (Path(data_dir) / written).exists():
        place, mark = written, ""  # a file may have such a name
    options = dict(parse_qsl(query, keep_blank_values=True)) if mark else {}
    unknown = [key for key, value in options.items() if key not in _OPTIONS or not value]
    if unknown or (mark and not options):
        raise UserError(
            f"{written}: behind the ? stand {', '.join(f'{key}=...' for key in _OPTIONS)}, joined by &"
            + (f", not {unknown[0]!r}" if unknown else "")
        )
    if place.startswith(_HUB):
        return Location(place.removeprefix(_HUB), True, **options)
    found = Location(str(Path(data_dir) / place), False, **options)
    if found.revision is not None:
        raise UserError(f"{written}: only a data set of the hub has revisions: leave revision= out")
    if options and not Path(found.place).is_dir():
        raise UserError(f"{written}: only a folder or a data set of the hub has splits: leave out what is behind the ?")
    return found
