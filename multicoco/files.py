"""Files that appear whole or not at all, however many processes, jobs and hosts write into their folder."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

_UNFINISHED = ".unfinished"
ABANDONED_SECONDS = 3600  # without a byte, after which nobody is still writing


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write into, which becomes `path` at the end, or nothing if that is not reached."""
    unfinished = path.with_name(f".{uuid4().hex}{_UNFINISHED}")  # its own: numbers of processes repeat on other hosts
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes what writers have left that were killed."""
    for left in folder.glob(f".*{_UNFINISHED}"):
        with suppress(OSError):  # another start removes it too
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink()


def may_replace(path: Path, is_earlier: Callable[[bytes], bool]) -> bool:
    """Whether what is there is an empty file, or one that `is_earlier` knows by its content."""
    if not path.is_file():  # a pipe would be read forever
        return False
    content = path.read_bytes()
    return not content or is_earlier(content)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as unfinished:
        unfinished.write_bytes(content)
