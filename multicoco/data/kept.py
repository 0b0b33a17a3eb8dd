"""Examples kept on disk as they have been read, so that no rank holds them all and no later start reads them again.

`<name>.examples` holds one JSON object after the other, of each record in its order: an example, or why it is none;
`<name>.npy` holds where each begins, and what has to be known of all at every start (BAD, SHOWN, UNANSWERED). Both are
read where they are asked for: what a process holds does not grow with their number, however many workers it has.
"""

import json
import os
from abc import abstractmethod
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from multicoco.data.example import Example, ImageSource, Turn
from multicoco.data.sources.ids import numbered
from multicoco.data.sources.location import Location
from multicoco.data.sources.mixture import copies_of, copy_id
from multicoco.data.sources.tables import StoredInTable
from multicoco.errors import UserError
from multicoco.files import whole

BAD, SHOWN, UNANSWERED = 1, 2, 4  # a record is none, has images, has no answer
_PLACE = np.dtype([("start", "i8"), ("flags", "u1")])
_PICK = np.dtype([("part", "i4"), ("place", "i8"), ("copy", "i4"), ("number", "i4")])
_TUPLES = ("choices", "steps", "direct_answers", "image_places")


class NotKept(Exception):
    """An example has an image of a kind that only a source of another package knows."""


class KeptRecords:
    """The records of two files that `keep` has written.

    Args:
        path: of the `.examples`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._places = np.load(path.with_suffix(".npy"), mmap_mode="r")
        self._file = os.open(path, os.O_RDONLY)  # of the process: a read has its own place, so forks may share it

    def __del__(self) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._places) - 1

    @property
    def flags(self) -> NDArray[np.uint8]:
        """(n,) of each record: BAD, SHOWN and UNANSWERED together."""
        flags: NDArray[np.uint8] = self._places["flags"][:-1]
        return flags

    def __getitem__(self, index: int) -> tuple[str, Example | UserError]:
        """What messages call the record, and the example or why it is none."""
        start, end = self._places["start"][index : index + 2].tolist()
        kept = json.loads(os.pread(self._file, end - start, start))
        label = kept.pop("label")
        return label, UserError(kept["bad"]) if "bad" in kept else _example(kept)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return KeptRecords, (self.path,)


def keep(path: Path, records: Iterable[tuple[str, Example | UserError]]) -> KeptRecords:
    """Writes records, whole or not at all.

    Raises:
        NotKept: an image is of a kind that is not known here.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    starts, flags = array("q", [0]), array("B")
    with whole(path) as examples:  # the last to be there: where it is, the other one is too
        with examples.open("wb") as file:
            for label, result in records:
                content = {"bad": str(result)} if isinstance(result, UserError) else _content(result)
                file.write(json.dumps({"label": label, **content}).encode())
                starts.append(file.tell())
                flags.append(_flags(result))
        both = np.zeros(len(starts), _PLACE)
        both["start"], both["flags"][:-1] = starts, flags
        with whole(path.with_suffix(".npy")) as places, places.open("wb") as file:
            np.save(file, both)
    return KeptRecords(path)


class Kept(Sequence[Example]):
    """Examples that are read from disk where they are asked for."""

    @property
    @abstractmethod
    def about(self) -> str:
        """What tells them from others."""

    @property
    @abstractmethod
    def flags(self) -> NDArray[np.uint8]:
        """As of `KeptRecords`."""

    @abstractmethod
    def picked(self, places: NDArray[np.int64]) -> "Kept":
        """Some of them."""

    @abstractmethod
    def at(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        return [self.at(place) for place in range(len(self))[index]] if isinstance(index, slice) else self.at(index)


class KeptExamples(Kept):
    """Some of the records of a file, which are examples.

    Args:
        chosen: their places among the records.
    """

    def __init__(self, records: KeptRecords, chosen: NDArray[np.int64]):
        self.records = records
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def about(self) -> str:
        return f"{self.records.path.stem} {sha256(self.chosen.tobytes()).hexdigest()}"

    @property
    def flags(self) -> NDArray[np.uint8]:
        return self.records.flags[self.chosen]

    def picked(self, places: NDArray[np.int64]) -> "KeptExamples":
        return KeptExamples(self.records, self.chosen[places])

    def at(self, index: int) -> Example:
        _, example = self.records[int(self.chosen[index])]
        if isinstance(example, UserError):
            raise example
        return example


class KeptMixture(Kept):
    """Examples of several files, each as often as it is picked (`sources.mixture`).

    Args:
        picks: (n,) of _PICK: which example of which part, which of its copies, and what tells its id from the same one
            of another part.
    """

    def __init__(self, parts: Sequence[KeptExamples], picks: NDArray[np.void]):
        self.parts = parts
        self.picks = picks

    @classmethod
    def of(cls, parts: Sequence[KeptExamples], weights: Sequence[float]) -> "KeptMixture":
        """Parts by their weights, one after the other; ids of different parts may be the same."""
        copies = [copies_of(len(part), weight) for part, weight in zip(parts, weights, strict=True)]
        picks = np.ones(sum(len(places) for places, _ in copies), _PICK)
        picks["part"] = np.repeat(np.arange(len(parts)), [len(places) for places, _ in copies])
        picks["place"] = np.concatenate([places for places, _ in copies])
        picks["copy"] = np.concatenate([numbers for _, numbers in copies])
        return cls(parts, picks)

    def __len__(self) -> int:
        return len(self.picks)

    @property
    def about(self) -> str:
        return " ".join([*(part.about for part in self.parts), sha256(self.picks.tobytes()).hexdigest()])

    @property
    def flags(self) -> NDArray[np.uint8]:
        found = np.zeros(len(self), np.uint8)
        for number, part in enumerate(self.parts):
            own = self.picks["part"] == number
            found[own] = part.flags[self.picks["place"][own]]
        return found

    def picked(self, places: NDArray[np.int64]) -> "KeptMixture":
        return KeptMixture(self.parts, self.picks[places])

    def at(self, index: int) -> Example:
        part, place, copy, number = self.picks[index].tolist()
        example: Example = self.parts[part].at(place)
        name = numbered(copy_id(example.id, copy), number)
        return example if name == example.id else replace(example, id=name)


def picked(examples: Sequence[Example], places: NDArray[np.int64]) -> Sequence[Example]:
    """Some of the examples, held or kept as they all are."""
    if isinstance(examples, Kept):
        return examples.picked(places)
    return [examples[place] for place in places]


def _flags(result: Example | UserError) -> int:
    if isinstance(result, UserError):
        return BAD
    return SHOWN * bool(result.images) | UNANSWERED * (result.answer is None)


def _content(example: Example) -> dict[str, Any]:
    shallow = {field.name: getattr(example, field.name) for field in fields(example)}
    return shallow | {
        "images": [_image(image) for image in example.images],
        "groups": dict(example.groups),
        "earlier": [asdict(turn) for turn in example.earlier],
    }


def _image(image: ImageSource) -> Any:
    if isinstance(image, Path):
        return str(image)
    if isinstance(image, bytes):
        return {"base64": b64encode(image).decode()}
    if isinstance(image, StoredInTable):
        return asdict(image)
    raise NotKept(f"{type(image).__name__} of {image!s:.60}")


def _example(kept: dict[str, Any]) -> Example:
    lists = {key: tuple(kept[key]) for key in _TUPLES}
    earlier = tuple(Turn(**{**turn, "image_places": tuple(turn["image_places"])}) for turn in kept["earlier"])
    return Example(**{**kept, **lists, "images": tuple(map(_kept_image, kept["images"])), "earlier": earlier})


def _kept_image(kept: Any) -> ImageSource:
    if isinstance(kept, str):
        return Path(kept)
    if "base64" in kept:
        return b64decode(kept["base64"])
    return StoredInTable(Location(**kept["location"]), kept["row"], tuple(kept["keys"]))
