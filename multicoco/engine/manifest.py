"""Whether a folder is whole: a manifest with the size and SHA-256 of every file in it, written last.

The ranks share the work, every rank reading its part of the files; all of them must see the same folder.
"""

import hashlib
import json
import os
from pathlib import Path

from multicoco.engine.ranks import gather, rank, world_size
from multicoco.tracking import write_json

MANIFEST = "manifest.json"


def seal(folder: Path) -> None:
    """Flushes every file to disk and writes the manifest. Collective.

    Raises:
        OSError: on the ranks whose files could not be read or flushed, and on rank 0 if the manifest could not be
            written; the others return, so agree on it afterwards.
    """
    error, described = None, {}
    try:
        for path in _share(sorted(_files(folder))):
            flush(path)
            described[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    except OSError as caught:
        error = caught
    gathered = gather(described)
    if error is not None:
        raise error
    if rank() == 0:
        files = {name: entry for part in gathered for name, entry in part.items()}
        write_json(folder / MANIFEST, {"files": dict(sorted(files.items()))})
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


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]


def _share(items: list) -> list:
    return items[rank() :: world_size()]


def _difference(path: Path, expected: dict) -> str | None:
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
