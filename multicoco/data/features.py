"""Features of images that are computed once, in files that are mapped into memory.

The images of an example are known by their content, together: some models see one otherwise when there are others. What
is computed of them depends on the model's vision weights and on how they are applied too: these name the folder
(`engine.features`). A file holds some images and appears whole or not at all, so that several runs may write at once;
what two of them have computed stands twice, and is the same.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multicoco.data.collate import ImageInputs
from multicoco.data.example import ImageSource
from multicoco.data.verified import content_of, digest_of
from multicoco.errors import UserError
from multicoco.files import whole

FEATURES = "image_features"  # of a model's inputs: what takes the place of pixels
SEEN = "image_seen"  # likewise, where the projector is still to be called
_TOKENS = "tokens"
KEY = np.dtype("S40")  # hexadecimal digits
_OPEN_FILES = 128  # mapped at a time, by a process

Keys = NDArray[np.bytes_]


def images_key(digests: Sequence[bytes]) -> str:
    """What tells an example's image files from all others, by the digest of each (`data.verified`)."""
    return sha256(b"".join(digests)).hexdigest()[: KEY.itemsize]


class FeatureStore:
    """The files of a folder.

    Args:
        names: of the tensors that are kept.
        digest: of an image file; that of `VerifiedImages` does not read what it knows.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        digest: Callable[[ImageSource], bytes] = lambda source: digest_of(content_of(source)),
    ):
        self.folder = folder
        self.names = [*names, _TOKENS]
        self.digest = digest
        self.files: list[Path] = []
        self.keys = np.empty(0, KEY)  # sorted
        self.file_of_key = np.empty(0, np.int32)

    def look(self) -> None:
        """Finds what has been written since it was looked last; a file that cannot be read is as if it were none."""
        keys, places = [self.keys], [self.file_of_key]
        for path in sorted(set(self.folder.glob("*.safetensors")).difference(self.files)):
            try:
                with safe_open(path, "pt") as file:
                    found = [name.split(".")[0] for name in file.keys() if name.endswith(f".{_TOKENS}")]  # noqa: SIM118
            except (OSError, SafetensorError):
                continue
            keys.append(np.array(found, KEY))
            places.append(np.full(len(found), len(self.files), np.int32))
            self.files.append(path)
        self.keys, first = np.unique(np.concatenate(keys), return_index=True)
        self.file_of_key = np.concatenate(places)[first]

    def missing(self, keys: Keys) -> Keys:
        """Those of which nothing is kept."""
        return keys[~np.isin(keys, self.keys)]

    def read(self, key: str) -> dict[str, Tensor] | None:
        """What is kept of an example's images; None if nothing is.

        Raises:
            UserError: its file has gone or is damaged.
        """
        place = int(np.searchsorted(self.keys, key.encode()))
        if place == len(self.keys) or self.keys[place] != key.encode():
            return None
        path = self.files[self.file_of_key[place]]
        try:
            return {name: _opened(path).get_tensor(f"{key}.{name}") for name in self.names}
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}, which holds features of images, has gone or is damaged ({error}): remove it and start again, "
                "what is missing is computed anew"
            ) from error

    def read_images(self, sources: Sequence[ImageSource]) -> ImageInputs:
        """Of an example's images, in their order, as its row of a batch has them; without tensors if it has none.

        Raises:
            UserError: nothing is kept of them.
        """
        if not sources:
            return ImageInputs()
        if (kept := self.read(images_key([self.digest(source) for source in sources]))) is None:
            names = ", ".join("an image" if isinstance(source, bytes) else str(source) for source in sources)
            raise UserError(f"{names}: changed since the run began, no features are kept of it: start again")
        return ImageInputs(kept.pop(_TOKENS).tolist(), kept)

    def write(self, images: Mapping[str, Mapping[str, Tensor]], tokens: Mapping[str, Sequence[Any]]) -> None:
        """Keeps images, by their examples' keys, in a new file.

        Args:
            tokens: of each example's images, how they are written: a number each, or several.

        Raises:
            OSError: they cannot be written; nothing is left of them.
        """
        tensors = {f"{key}.{name}": tensor for key, image in images.items() for name, tensor in image.items()}
        tensors |= {f"{key}.{_TOKENS}": torch.tensor(list(written)) for key, written in tokens.items()}
        try:
            with whole(self.folder / f"{uuid4().hex}.safetensors") as unfinished:
                save_file(tensors, unfinished)
                with unfinished.open("rb") as file:
                    os.fsync(file.fileno())  # a power failure must not leave a whole name with half the content
        except SafetensorError as error:  # which is how it says that a disk is full
            raise OSError(str(error)) from error


@lru_cache(maxsize=_OPEN_FILES)
def _opened(path: Path) -> Any:
    return safe_open(path, "pt")
