"""From YAML files that inherit from each other, and overrides, to a run config."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from multicoco.config.dialect import parse
from multicoco.config.errors import describe
from multicoco.config.schema import RunConfig
from multicoco.errors import UserError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run config, the files it inherits from and `key=value` overrides.

    A file names its parent with `inherits: other.yaml`, relative to itself; without it the `base.yaml` beside it is
    the parent, if there is one. Mappings merge key by key, everything else is replaced.

    Raises:
        UserError: one message with every problem: full key, where it was set, what is wrong, nearest valid key.
    """
    path = Path(path)
    merged: dict = {}
    origins: dict[str, str] = {}  # dotted key -> where it was set last
    for content, lines in _inheritance(path):
        _merge(merged, content)
        origins |= lines
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"--set {override}: write it as --set key=value")
        nested, _ = parse(text, f"--set {override}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(merged, nested)
        origins |= dict.fromkeys(_dotted(nested), f"--set {override}")
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UserError("\n  ".join([f"{path} is not a valid run config:", *describe(error, origins)])) from error
    in_repo = path.resolve().parent.parent / config.deepspeed
    if not Path(config.deepspeed).exists() and in_repo.exists():
        config = config.model_copy(update={"deepspeed": str(in_repo)})
    return config


def _inheritance(file: Path, heirs: tuple[Path, ...] = ()) -> list[tuple[dict, dict[str, str]]]:
    """Content and key origins of all that the file inherits from, the furthest first, and of the file itself."""
    content, origins = _read(file)
    chain = (*heirs, file)
    ancestor = content.pop("inherits", None)
    if ancestor is None:
        parent = file.parent / "base.yaml"
        if not parent.exists() or _is_in(parent, chain):
            return [(content, origins)]
    elif isinstance(ancestor, str):
        parent = file.parent / ancestor
        if _is_in(parent, chain):
            raise UserError(f"{chain[0]}: inherits in a circle: {' -> '.join(map(str, (*chain, parent)))}")
        if not parent.is_file():
            raise UserError(f"{origins['inherits']}: inherits {ancestor}, but there is no file {parent}")
    else:
        raise UserError(f"{origins['inherits']}: inherits must be the path of one YAML file (got {ancestor!r})")
    return [*_inheritance(parent, chain), (content, origins)]


def _is_in(file: Path, chain: Sequence[Path]) -> bool:
    return any(file.resolve() == other.resolve() for other in chain)


def _read(file: Path) -> tuple[dict, dict[str, str]]:
    """A file's content, and `file:line` of each of its dotted keys."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a run config: {error}") from error
    content, node = parse(text, str(file))
    if content is None:
        return {}, {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{file}: a run config is a mapping of keys to values")
    return content, {key: f"{file}:{line}" for key, line in _lines(node)}


def _lines(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every dotted key of a YAML mapping with its line, counted from 1."""
    for key, value in node.value:
        yield f"{prefix}{key.value}", key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, f"{prefix}{key.value}.")


def _dotted(content: dict, prefix: str = "") -> Iterator[str]:
    """Every dotted key of nested mappings."""
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _merge(into: dict, update: dict) -> None:
    """Merges `update` into `into`: mappings key by key, everything else replaced."""
    for key, value in update.items():
        if isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value
