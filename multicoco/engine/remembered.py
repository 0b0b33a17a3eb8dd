"""Numbers that no later start need find again: one array a file, which may be removed at any time."""

from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from multicoco.files import write_bytes

Number = TypeVar("Number", np.int32, np.int64)


def recall(path: Path | None, kind: type[Number], n: int | None = None) -> NDArray[Number] | None:
    """What `remember` has written of such numbers; None if there is no such file, or it holds others than n of them."""
    if path is None:
        return None
    try:
        numbers = np.frombuffer(path.read_bytes(), kind)
    except (OSError, ValueError):  # not there, or cut within a number
        return None
    return numbers if n is None or len(numbers) == n else None


def remember(path: Path | None, numbers: NDArray[Number]) -> None:
    """For later starts; of one process only. Where nothing can be written, they find the numbers again."""
    if path is not None:
        with suppress(OSError):
            write_bytes(path, numbers.tobytes())
