"""Questions that come with the page: those of the run's validation data, or of a file."""

import sys
from collections.abc import Sequence
from pathlib import Path

from multicoco.ask.asker import Asker
from multicoco.data.example import Example
from multicoco.engine.records import load_records
from multicoco.errors import UserError

_MOST = 24


def read_examples(asker: Asker, path: Path | None) -> list[Example]:
    """The first ones, but for those with earlier turns, which have no place on the page.

    Args:
        path: records, whose images are relative to their folder; None: the `val_path` of the run, if it can be read.

    Raises:
        UserError: the records of `path` cannot be read.
    """
    config = asker.config
    if path is not None:
        there = {"data_dir": str(path.parent), "image_dir": None}
        return _of_one_turn(load_records(config.model_copy(update=there), path.name, _MOST))
    if not asker.is_run:
        return []
    try:
        return _of_one_turn(load_records(config, config.val_path, _MOST))
    except UserError as error:
        instead = "start it in the folder where the run was started, or name a file of records with --examples"
        print(f"no examples ({error}): {instead}", file=sys.stderr)
        return []


def _of_one_turn(examples: Sequence[Example]) -> list[Example]:
    return [example for example in examples if not example.earlier]
