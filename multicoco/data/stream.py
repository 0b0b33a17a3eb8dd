"""Training records that are read while training: of their files, only where the pieces are is known before.

Any record can be asked for; its piece is read and held until others take its place. So whoever asks in an order that
goes piece by piece (`order.LaneOrder`) reads each of them once, and holds but a few.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from multicoco.data.example import Example, load_image
from multicoco.data.sources.ids import label_of, own_id
from multicoco.data.sources.load import Loaded
from multicoco.data.sources.of_run import asked_openly
from multicoco.data.sources.parse import RecordParser
from multicoco.data.sources.pieces import Pieces, Unreadable, read_piece
from multicoco.errors import UserError

logger = logging.getLogger(__name__)


class TooLong(UserError):
    """An example is longer than is allowed."""


class Policy(NamedTuple):
    """What is left out where it is met (`on_bad_record`, `too_long`), and whether questions are asked without their
    choices (`direct_answers`)."""

    skip_bad: bool = False
    skip_long: bool = False
    openly: bool = False


class StreamedExamples(Sequence[Example]):
    """The records of files as examples, each read when it is wanted.

    Args:
        files: where their pieces are, by their paths, in their order.
        limit: the first so many records are all.

    Attributes:
        pieces: records in each, of all files.
        room: pieces that are held at a time.
    """

    def __init__(self, files: dict[str, Pieces], parser: RecordParser, policy: Policy, limit: int | None):
        self.files = list(files.items())
        self.parser = parser
        self.policy = policy
        counts = [pieces.records for pieces in files.values()]
        records = np.concatenate([np.empty(0, np.int64), *counts])
        ends = np.minimum(np.cumsum(records), records.sum() if limit is None else limit)
        self.pieces = np.diff(ends, prepend=0)
        self.ends = ends
        self.file_ends = np.cumsum([len(count) for count in counts])  # of each file's pieces among all
        self.room = 2
        self._held: OrderedDict[int, Sequence[Any]] = OrderedDict()
        self._told: set[int] = set()  # what is left out, by this process

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Its images unseen.

        Raises:
            UserError: the record is bad or has no answer, with the reason alone.
            Unreadable: its file cannot be read.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        index = range(len(self))[index]
        record = self.parser.renamed(self._record(index))
        example = self.parser(record, own_id(record, index))
        if example.answer is None:
            raise UserError("has no answer to learn")
        return asked_openly(example) if self.policy.openly else example

    def first(self, n: int, verify_images: bool = True) -> Loaded:
        """The first records, of which the good ones are kept."""
        examples, problems = list[Example](), list[str]()
        checked = min(n, len(self))
        for index in range(checked):
            try:
                example = self[index]
                for image in example.images if verify_images else ():
                    load_image(image)
                examples.append(example)
            except Unreadable:
                raise
            except UserError as error:
                problems.append(f"{self._name(index)}: {error}")
        return Loaded(examples, problems, checked, len(self))

    def instead(self, index: int, error: UserError) -> Iterator[int]:
        """Whose row may fill the place of a record that is left out: of any other one of its piece, the next first.

        Raises:
            UserError: it is not to be left out, as a file that cannot be read never is; or none of the others is good.
        """
        if isinstance(error, Unreadable):
            raise error
        key = "too_long" if isinstance(error, TooLong) else "on_bad_record"
        named = f"{self._name(index)}: {error}"
        if not (self.policy.skip_long if isinstance(error, TooLong) else self.policy.skip_bad):
            raise UserError(
                f"{named}\nMend it, or leave it and its like out: go on with {key}: skip and --allow-change {key}"
            )
        if index not in self._told:
            self._told.add(index)
            logger.warning("%s: left out", named)
        piece, _ = self._place(index)
        end, n = int(self.ends[piece]), int(self.pieces[piece])
        yield from (end - n + (index - (end - n) + k) % n for k in range(1, n))
        raise UserError(f"{named}\nNor is any other of the {n} records beside it good: is this the right file?")

    def _record(self, index: int) -> Any:
        piece, within = self._place(index)
        if piece not in self._held:
            while len(self._held) >= self.room:
                self._held.popitem(last=False)
            path, pieces, place = self._file(piece)
            self._held[piece] = read_piece(path, pieces, place)
        self._held.move_to_end(piece)
        return self._held[piece][within]

    def _place(self, index: int) -> tuple[int, int]:
        """The piece that a record is in, and its place there."""
        piece = int(np.searchsorted(self.ends, index, side="right"))
        return piece, index - int(self.ends[piece] - self.pieces[piece])

    def _file(self, piece: int) -> tuple[str, Pieces, int]:
        """The file that a piece is in, and its place there."""
        file = int(np.searchsorted(self.file_ends, piece, side="right"))
        path, pieces = self.files[file]
        return path, pieces, piece - int(self.file_ends[file]) + len(pieces.records)

    def _name(self, index: int) -> str:
        """What messages call a record: by its place in its file."""
        piece, within = self._place(index)
        path, pieces, place = self._file(piece)
        return f"{path}: {label_of(self._record(index), int(pieces.records[:place].sum()) + within)}"
