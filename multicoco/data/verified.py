"""Images that have been decoded once: which files they were, so that nobody need decode them again to trust them."""

import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multicoco.data.example import ImageSource, load_image

# name: of the image; content: of the file; 64 bits of a hash each. One of 10^6 files takes another's place with a
# probability of 10^-8, and then still has to have its size and time.
_ENTRY = np.dtype([("name", "u8"), ("size", "i8"), ("mtime", "i8"), ("content", "u8")])
Entries = NDArray[np.void]


class VerifiedImages:
    """Of each image that was decoded: name, size, time of change and hash.

    Args:
        path: of a file that may not exist yet; what is no such file is taken for none.
        stored_in: what names the content of tables, whose images have no size and time of their own.
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
        self._new: list[tuple[int, int, int, int]] = []

    def verify(self, image: ImageSource) -> None:
        """Nothing, if the image is the one that was decoded before; else decodes it.

        Raises:
            UserError: as `load_image`.
        """
        if isinstance(image, bytes):
            load_image(image)
            return
        name = _hash(str(image) if isinstance(image, Path) else f"{self.stored_in} {image}")
        size, mtime = _stat(image)
        place = int(np.searchsorted(self._names, np.uint64(name)))
        known = self._entries[place] if place < len(self._names) and self._names[place] == name else None
        if known is not None and (known["size"], known["mtime"]) == (size, mtime):
            return
        content = _hash(image.read_bytes()) if isinstance(image, Path) and size >= 0 else 0
        if known is None or known["content"] != content or known["size"] != size:
            load_image(image)
        self._new.append((name, size, mtime, content))

    def taken(self) -> Entries:
        """What has been verified anew since the last call."""
        new, self._new = self._new, []
        return np.array(new, _ENTRY)

    def save(self, new: Sequence[Entries]) -> None:
        """Adds what has been verified, here or elsewhere, to the file, which another run may have written meanwhile.
        That it cannot be written costs no more than time, at the next start."""
        if not sum(map(len, new)):
            return
        # of the same name the first one stays
        together = np.concatenate([*new, VerifiedImages(self.path)._entries])
        _, first = np.unique(together["name"], return_index=True)
        unfinished = self.path.with_suffix(f".{os.getpid()}.unfinished")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                np.save(file, together[first])
            unfinished.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            print(f"{self.path} cannot be written ({error}): images will be verified again", flush=True)


def _stat(image: ImageSource) -> tuple[int, int]:
    if not isinstance(image, Path):
        return 0, 0
    try:
        found = image.stat()
    except OSError:
        return -1, 0  # loading it will say why
    return found.st_size, found.st_mtime_ns


def _hash(content: str | bytes) -> int:
    return int.from_bytes(blake2b(content.encode() if isinstance(content, str) else content, digest_size=8).digest())
