"""YAML as run configs are written in it: no objects, no sexagesimal, octal or date by accident, and 1e-4 a number."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from multicoco.errors import UserError

BOOL, INT, FLOAT, NULL, STR, MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null", "str", "merge")
)
_CLEARER = {  # than PyYAML's own words
    "found character '\\t' that cannot start any token": "a tab, where YAML wants spaces",
    "but found another document": "a second document begins, a run config is one",
}
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"  # 1e-4 is text in the YAML 1.1 of PyYAML


class Loader(yaml.SafeLoader):
    """Tags build no objects; plain text is a number, a truth value or null as in YAML 1.2, or yes, no, on, off."""


class _Dumper(yaml.SafeDumper):
    """Quotes what Loader, or any reader of YAML 1.1 or 1.2, would not read as text."""


Loader.yaml_implicit_resolvers = {}  # instead of YAML 1.1's, for which 010 is 8 and 12:30 is 750
for _tag, _pattern, _first in (
    (BOOL, r"true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF", "tTfFyYnNoO"),
    (INT, r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)", "-+0123456789"),
    (FLOAT, rf"{_FLOAT}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+0123456789."),
    (NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (MERGE, r"<<", "<"),
):
    Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
_Dumper.add_implicit_resolver(FLOAT, re.compile(f"^{_FLOAT}$"), list("-+0123456789."))


def plain_tag(text: str) -> str:
    """What a text is where it stands without quotes."""
    tag: str = Loader("").resolve(yaml.ScalarNode, text, (True, False))
    return tag


@contextmanager
def _one_message(source: str, start: yaml.Mark | None = None) -> Iterator[None]:
    try:
        yield
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None) or start
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{source}: not valid YAML{_in_line(mark)}: {_CLEARER.get(problem, problem)}") from error
    except (ValueError, LookupError, AttributeError) as error:  # !!int x, !!int, !!timestamp x
        raise UserError(f"{source}: not valid YAML{_in_line(start)}: a value is not what its tag says") from error


def _in_line(mark: yaml.Mark | None) -> str:
    return f" in line {mark.line + 1}" if mark else ""


def compose(text: str, source: str) -> yaml.Node | None:
    """The node of a YAML text, None of an empty one.

    Raises:
        UserError: it is not one YAML document.
    """
    with _one_message(source):
        return Loader(text).get_single_node()


def construct(node: yaml.Node, source: str) -> Any:
    """The value of a node.

    Raises:
        UserError: it has a tag that is none of YAML's own, or text that its tag does not allow.
    """
    with _one_message(source, node.start_mark):
        return Loader("").construct_document(node)


def dump(content: dict[str, Any]) -> str:
    """The text that is read back as it was."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)
