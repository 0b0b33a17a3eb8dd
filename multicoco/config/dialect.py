"""YAML as run configs are written in it: no objects, no key twice, 1e-4 a number."""

import re
from typing import Any

import yaml

from multicoco.errors import UserError


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key that stands twice in a mapping."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.append(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what _Loader would not read as text."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(  # 1e-4 is a number in YAML 1.2, but text in the 1.1 of PyYAML
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
        list("-+0123456789."),
    )


def parse(text: str, source: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and the node it was made from."""
    try:
        loader = _Loader(text)  # a SafeLoader: tags cannot build objects
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node), node
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 32nd of a month, for one
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}: not valid YAML{where}: {getattr(error, 'problem', None) or error}") from error


def dump(content: dict[str, Any]) -> str:
    """The text that `parse` reads back as it was."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)
