"""Whether a folder is whole: a manifest with the size and SHA-256 of every file in it, written last.

Every rank describes what it has written, and reads its share of the files when they are checked.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from multicoco.engine.ranks import gather, rank, world_size
from multicoco.files import write_json

MANIFEST = "manifest.json"


def describe(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files below a folder, by their names in it, once each is on disk.

    Raises:
        OSError: one could not be flushed or read.
    """
    described = {}
    for path in files:
        flush(path)
        described[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return described


def seal(folder: Path, described: dict[str, dict[str, Any]]) -> None:
    """Writes the manifest of a folder whose files have all been described.

    Raises:
        OSError: it could not be written, or a file that another rank has described is not to be seen here.
    """
    for name, entry in described.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise OSError(f"{name}, which another rank has written, is not there: all hosts must share the folder")
    write_json(folder / MANIFEST, {"files": dict(sorted(described.items()))})
    for path in [folder / MANIFEST, folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        flush(path)


def damage(folder: Path, below: str = "") -> list[str]:
    """What is wrong with a sealed folder, file by file; nothing if it is whole. Collective.

    Args:
        below: look only at files whose name in the manifest starts so.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: entry for name, entry in listed.items() if name.startswith(below)}
        found = [_difference(folder / name, expected[name]) for name in _share(sorted(expected))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = [f"{MANIFEST} or a file in it cannot be read ({error!r:.200})"]
    return list(dict.fromkeys(problem for part in gather(found) for problem in part if problem))


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _share(items: list[str]) -> list[str]:
    return items[rank() :: world_size()]


def _difference(path: Path, expected: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path.name}: missing"
    if (size := path.stat().st_size) != expected["bytes"]:
        return f"{path.name}: {size} bytes, not {expected['bytes']}"
    if sha256(path) != expected["sha256"]:
        return f"{path.name}: changed since it was written (SHA-256)"
    return None


def sha256(path: Path) -> str:
    """Of a file's content, as hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
