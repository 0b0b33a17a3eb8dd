"""From YAML files that inherit from each other, and overrides, to a run config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multicoco.config.content import Content, merge, read_file, read_override
from multicoco.config.errors import describe
from multicoco.config.schema import RunConfig, method_sections
from multicoco.config.section import MethodKeys, expand
from multicoco.errors import UserError


def load_config(path: str | Path, overrides: Sequence[str] = (), saved: bool = False) -> RunConfig:
    """Reads a run config, the files it inherits from and `key=value` overrides.

    A file names its parent with `inherits: other.yaml`, relative to itself; without it the `base.yaml` beside it is
    the parent, if there is one; with `inherits: null` it has none. Mappings merge key by key, everything else is
    replaced. A key of a section may be written dotted, `coconut.c_thought: 2`.

    Args:
        saved: the file is what a run has written of its own, and holds what that had inherited.

    Raises:
        UserError: one message with every problem: full key, where it was set, what is wrong, nearest valid key.
    """
    try:
        path = Path(expand(str(path)))
    except ValueError as error:
        raise UserError(f"run config {path}: {error}") from error
    merged: dict[str, Any] = {}
    places: dict[str, str] = {}  # dotted key -> where it was set last
    levels: dict[str, int] = {}  # dotted key -> how late it was set: by which file, the overrides being the last
    files = _inheritance(path)
    contents = [*enumerate(files), *((len(files), read_override(override)) for override in overrides)]
    for level, (content, set_in) in contents:
        merge(merged, content)
        places |= set_in
        levels |= dict.fromkeys(set_in, level)
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UserError("\n  ".join([f"{path} is not a valid run config:", *describe(error, places)])) from error
    if not saved:
        _refuse_unread(path, config, levels)
    in_repo = path.resolve().parent.parent / config.deepspeed
    if not Path(config.deepspeed).exists() and in_repo.exists():
        config = config.model_copy(update={"deepspeed": str(in_repo)})
    return config


def _refuse_unread(path: Path, config: RunConfig, levels: dict[str, int]) -> None:
    sections: list[MethodKeys] = [getattr(config, name) for name in method_sections()]
    refused = [
        told
        for section in sections
        for key, given_by, told in section.unread(config)
        if levels.get(key, -1) >= max(levels.get(other, -1) for other in given_by)
    ]
    if refused:
        raise UserError("\n  ".join([f"{path} is not a valid run config:", *refused]))


def _inheritance(file: Path, heirs: tuple[Path, ...] = ()) -> list[Content]:
    """All that the file inherits from, the furthest first, and the file itself."""
    content, places = read_file(file)
    chain = (*heirs, file)
    if "inherits" not in content:
        parent = file.parent / "base.yaml"
        if not parent.exists() or _is_in(parent, chain):
            return [(content, places)]
        return [*_inheritance(parent, chain), (content, places)]
    ancestor, place = content.pop("inherits"), places["inherits"]
    if ancestor is None:
        return [(content, places)]
    if not isinstance(ancestor, str):
        raise UserError(f"{place}: inherits must be the path of one YAML file (got {ancestor!r})")
    try:
        parent = file.parent / expand(ancestor)
    except ValueError as error:
        raise UserError(f"{place}: inherits {ancestor}: {error}") from error
    if _is_in(parent, chain):
        raise UserError(f"{chain[0]}: inherits in a circle: {' -> '.join(map(str, (*chain, parent)))}")
    if not parent.is_file():
        raise UserError(f"{place}: inherits {ancestor}, but there is no file {parent}")
    return [*_inheritance(parent, chain), (content, places)]


def _is_in(file: Path, chain: Sequence[Path]) -> bool:
    return any(file.resolve() == other.resolve() for other in chain)
