"""What one file or one override holds: its keys and values, and where each key stands."""

import codecs
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from multicoco.config.dialect import MERGE, STR, compose, construct
from multicoco.config.schema import RunConfig, all_keys
from multicoco.config.values import on_command_line, read_as
from multicoco.errors import UserError

_LONGEST_OVERRIDE = 200  # that a message repeats

Content = tuple[dict[str, Any], dict[str, str]]  # nested keys and values; the place of each dotted key


def read_file(file: Path, what: str = "run config", run_key: Callable[[str], str] | None = None) -> Content:
    """The content of a YAML file, in UTF-8 or with the byte order mark of UTF-16; places are `file:line`.

    Args:
        what: it is, for messages.
        run_key: of a file that is no run config but holds keys of some: which one a dotted place stands for. Its own
            keys may have dots, and stay as they are written.

    Raises:
        UserError: it cannot be read, is no YAML or no mapping, or a key stands twice.
    """
    try:
        raw = file.read_bytes()
        is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = raw.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}: cannot be read as a {what}: line {line} is no UTF-8, save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as a {what}: {error}") from error
    node = compose(text, str(file))
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{file}: a {what} is a mapping of keys to values")
    return _Reader(str(file), True, run_key).read(node)


def read_override(override: str) -> Content:
    """The content of a `key=value` of the command line, which is its own place.

    Raises:
        UserError: it is no `key=value`, or its value is no YAML where it is to be.
    """
    source = f"--set {override if len(override) <= _LONGEST_OVERRIDE else override[:_LONGEST_OVERRIDE] + '...'}"
    key, separator, text = override.partition("=")
    if not separator or not key or key != key.strip():
        raise UserError(f"{source}: write it as --set key=value")
    pair = (yaml.ScalarNode(STR, key), on_command_line(text, _types().get(key), source))
    return _Reader(source, has_lines=False).read(yaml.MappingNode("", [pair]))


def merge(into: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """Merges `update` into `into`: mappings key by key, everything else replaced."""
    for key, value in update.items():
        if isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            merge(into[key], value)
        else:
            into[key] = value
    return into


@cache
def _types() -> dict[str, Any]:
    """The type of each dotted key."""
    return {key: field.annotation for key, field in all_keys(RunConfig)}


class _Reader:
    """Makes the content of a mapping, and notes where each key stands."""

    def __init__(self, source: str, has_lines: bool, run_key: Callable[[str], str] | None = None):
        self.source, self.has_lines, self.run_key = source, has_lines, run_key
        self.places: dict[str, str] = {}

    def read(self, root: yaml.MappingNode) -> Content:
        try:
            return self._mapping(root, ""), self.places
        except RecursionError as error:
            raise UserError(f"{self.source}: not valid YAML: a part of it contains itself") from error

    def _place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.has_lines else self.source

    def _mapping(self, node: yaml.MappingNode, prefix: str) -> dict[str, Any]:
        content: dict[str, Any] = {}
        inherited: dict[str, Any] = {}  # by `<<: *anchor`
        written = set()
        for key, value in sorted(node.value, key=lambda pair: pair[0].tag != MERGE):
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{self._place(node)}: a key must be text")
            if key.value in written:
                raise UserError(f"{self._place(key)}: key {prefix + key.value!r} stands twice")
            written.add(key.value)
            if key.tag == MERGE:
                for other in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(other, yaml.MappingNode):
                        raise UserError(f"{self._place(key)}: << takes a mapping, or a list of them")
                    merge(inherited, self._mapping(other, prefix))
            else:
                self._put(content, key.value, self._value(key, value, prefix), prefix)
        return merge(inherited, content)

    def _value(self, key: yaml.ScalarNode, value: yaml.Node, prefix: str) -> Any:
        name = prefix + key.value
        for end in (*(len(prefix) + dot.start() for dot in re.finditer(r"\.", key.value)), len(name)):
            self.places[name[:end]] = self._place(key)
        if isinstance(value, yaml.MappingNode):
            return self._mapping(value, f"{name}.")
        read_as(value, [_types().get(self.run_key(name) if self.run_key else name)])
        return construct(value, self.source)

    def _put(self, into: dict[str, Any], key: str, value: Any, prefix: str) -> None:
        """Puts a value at its place, which a dotted key names from here on; it must be free."""
        first, dot, rest = (key, "", "") if self.run_key else key.partition(".")
        name = prefix + first
        if dot:
            self._put(into, first, {}, prefix)
            self._put(into[first], rest, value, f"{name}.")
        elif first not in into:
            into[first] = value
        elif isinstance(into[first], dict) and isinstance(value, dict):
            for inner, inner_value in value.items():
                self._put(into[first], inner, inner_value, f"{name}.")
        else:
            raise UserError(f"{self.places[name]}: key {name!r} stands twice")
