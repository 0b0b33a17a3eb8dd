"""Data sets on disk: folders that are written whole or not at all, and the questions of other data sets."""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from multicoco.data.sources.files import read_records
from multicoco.errors import UserError

ARGUMENTS = "dataset.json"  # in every folder: what it was made with

Key = frozenset[str]


def to_json(value: Any) -> str:
    """As all files here are written."""
    return json.dumps(value, indent=1) + "\n"


def check_sizes(task: str, sizes: dict[str, int]) -> None:
    """Refuses sizes of splits below 0, or that are all 0.

    Raises:
        UserError: there are such.
    """
    if any(size < 0 for size in sizes.values()) or not any(sizes.values()):
        raise UserError(f"{task}: no split may have less than 0 records, and one must have some, not {sizes}")


def write_folder(folder: Path, arguments: dict[str, Any], files: Iterable[str], write: Callable[[Path], None]) -> None:
    """Makes a data set's folder, unless it is there already.

    Args:
        folder: new or empty, or one that holds this very data set, which is then left as it is.
        arguments: what makes the data set; written to `dataset.json`.
        files: paths in the folder of all that `write` writes.
        write: called with an empty folder, which is renamed at the end: what is interrupted leaves nothing.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    folder = Path(folder).resolve()
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not _holds(folder, arguments, {ARGUMENTS, *files}):
                raise UserError(f"{folder} is not empty and not the data set of {arguments}: give another folder")
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as parent:
            unfinished = Path(parent) / folder.name
            unfinished.mkdir()
            write(unfinished)
            (unfinished / ARGUMENTS).write_text(to_json(arguments), encoding="utf-8")
            unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the data set there ({error}): give another folder") from error


def _holds(folder: Path, arguments: dict[str, Any], files: set[str]) -> bool:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found == files and (folder / ARGUMENTS).read_text(encoding="utf-8") == to_json(arguments)


def question_key(question: str) -> Key:
    """The same for the same facts and the same question, in whatever order facts and options stand."""
    *facts, asked = re.split(r"(?<=\.) ", question)
    return frozenset([*facts, *asked.rstrip("?").split()])


def questions_in(paths: Sequence[Path]) -> set[Key]:
    """The keys of all questions in files of records, and in the `*.json` of folders.

    Raises:
        UserError: a file holds no records with questions, or a folder none of such files.
    """
    keys: set[Key] = set()
    for path in paths:
        files = sorted(file for file in path.glob("*.json") if file.name != ARGUMENTS) if path.is_dir() else [path]
        before = len(keys)
        for file in files:
            if path.is_dir() and file.read_text(encoding="utf-8").strip() == "[]":  # a split of size 0
                continue
            for index, record in enumerate(read_records(file)):
                question = record.get("question") if isinstance(record, dict) else None
                if not isinstance(question, str):
                    raise UserError(f"{file}: record {index} has no question, so nothing can be kept apart from it")
                keys.add(question_key(question))
        if len(keys) == before:
            raise UserError(f"{path}: holds no questions to keep apart from: name files of records, or their folder")
    return keys


def digest(keys: Iterable[Any]) -> str | None:
    """One text for a set of keys, in any order; None for an empty one."""
    texts = sorted(str(sorted(key)) if isinstance(key, frozenset) else str(key) for key in keys)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest() if texts else None
