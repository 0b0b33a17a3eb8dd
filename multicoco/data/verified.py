"""Images that have been decoded once: which files they were, so that nobody need read them again to know them."""

import os
from collections.abc import Sequence
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multicoco.data.example import ImageSource, load_image
from multicoco.errors import UserError
from multicoco.files import whole

_DIGEST = 20  # bytes, as many as no two contents ever share
# name: of the image, 64 bits of a hash. One of 10^6 files takes another's place with a probability of 10^-8, and then
# still has to have its size and times. mtime: of its content, which copies keep and programs set; ctime: of its inode,
# which no program sets. content: `digest_of` the file, 0 where nobody has asked for it
_ENTRY = np.dtype([("name", "u8"), ("size", "i8"), ("mtime", "i8"), ("ctime", "i8"), ("content", f"V{_DIGEST}")])
_NO_DIGEST = bytes(_DIGEST)
Entries = NDArray[np.void]
Stamp = tuple[int, int, int]  # size and both times: whoever has them is the same file with the same content


def content_of(source: ImageSource) -> bytes:
    """An image file.

    Raises:
        UserError: it cannot be read.
    """
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes() if isinstance(source, Path) else source.read()
    except OSError as error:
        raise UserError(f"{source}: cannot be read as an image: {error}") from error


def digest_of(content: bytes) -> bytes:
    """What tells a file from all others."""
    return sha256(content).digest()[:_DIGEST]


class VerifiedImages:
    """Of each image that was decoded: name, size, times of change and digest.

    Args:
        path: of a file that may not exist yet; what is no such file is taken for none.
        stored_in: what names the content of the table that images are in, which have no size and times of their own; ""
            where it is not known: they are decoded each time.

    Attributes:
        has_changed: whether one that was verified is another than it was before.
    """

    def __init__(self, path: Path, stored_in: str = ""):
        self.path = path
        self.stored_in = stored_in
        try:
            entries = np.load(path)
            self._entries = entries if entries.dtype == _ENTRY else np.empty(0, _ENTRY)
        except (OSError, ValueError, EOFError):
            self._entries = np.empty(0, _ENTRY)
        self._names = np.ascontiguousarray(self._entries["name"])
        self.has_changed = False
        self._new: dict[int, tuple[Stamp, bytes]] = {}

    def verify(self, image: ImageSource) -> None:
        """Nothing, if the image is the one that was decoded before; else decodes it.

        Raises:
            UserError: as `load_image`.
        """
        if isinstance(image, bytes) or not (isinstance(image, Path) or self.stored_in):
            load_image(image)
            return
        name, stamp = self._name(image), _stamp(image)
        known, digest_then = self._known(name)
        if known == stamp:
            return
        digest = digest_of(content_of(image)) if isinstance(image, Path) else _NO_DIGEST
        if known is None or known[0] != stamp[0] or digest_then != digest:
            load_image(image)
            self.has_changed |= known is not None
        self._new[name] = stamp, digest

    def digest(self, image: ImageSource) -> bytes:
        """`digest_of` an image; its file is read if its size or a time of change is another than when it was read last.
        Whoever saves what is `taken` afterwards has decoded it.

        Raises:
            UserError: it cannot be read.
        """
        if not isinstance(image, Path):
            return digest_of(content_of(image))
        name, stamp = self._name(image), _stamp(image)  # looked at before it is read: it may change meanwhile
        known, digest = self._known(name)
        if known != stamp or digest == _NO_DIGEST:
            digest = digest_of(content_of(image))
            self._new[name] = stamp, digest
        return digest

    def taken(self) -> Entries:
        """What has been read anew since the last call."""
        new, self._new = self._new, {}
        return np.array([(name, *stamp, digest) for name, (stamp, digest) in new.items()], _ENTRY)

    def learn(self, new: Sequence[Entries]) -> None:
        """Adds what has been taken, here or elsewhere, without writing it."""
        if sum(map(len, new)):
            self._entries = _together([*new, self._entries])
            self._names = np.ascontiguousarray(self._entries["name"])

    def save(self, new: Sequence[Entries]) -> None:
        """Adds what has been taken, here or elsewhere, to the file, which another run may have written meanwhile.
        That it cannot be written costs no more than time, at the next start."""
        if not sum(map(len, new)):
            return
        together = _together([*new, VerifiedImages(self.path)._entries])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole(self.path) as unfinished, unfinished.open("wb") as file:
                np.save(file, together)
        except OSError as error:
            print(f"{self.path} cannot be written ({error}): images will be read again", flush=True)

    def _name(self, image: ImageSource) -> int:
        name = os.path.abspath(image) if isinstance(image, Path) else f"{self.stored_in} {image!s}"
        return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())

    def _known(self, name: int) -> tuple[Stamp | None, bytes]:
        """How its file was, and its digest then; None if it is not known."""
        if name in self._new:
            return self._new[name]
        place = int(np.searchsorted(self._names, np.uint64(name)))
        if place == len(self._names) or self._names[place] != name:
            return None, _NO_DIGEST
        _, size, mtime, ctime, digest = self._entries[place].tolist()
        return (size, mtime, ctime), bytes(digest)


def _together(parts: Sequence[Entries]) -> Entries:
    """By name; of the same name the first one."""
    together = np.concatenate(parts)
    _, first = np.unique(together["name"], return_index=True)
    return together[first]


def _stamp(image: ImageSource) -> Stamp:
    if not isinstance(image, Path):
        return 0, 0, 0
    try:
        found = image.stat()
    except OSError:
        return -1, 0, 0  # reading it will say why
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
