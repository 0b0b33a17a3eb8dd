"""A value is read as the key's type: text as it is written, a number also where it is quoted or written as 1e3.

Only what can mean nothing else is taken; the schema refuses the rest.
"""

from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml

from multicoco.config.dialect import BOOL, FLOAT, INT, MERGE, NULL, STR, Loader, compose, plain_tag
from multicoco.config.section import NULLS
from multicoco.errors import UserError

_NUMBERS = {bool, int, float}
_EXACT = 2**53  # floats below it are the numbers that are written


def plain_types(annotation: Any) -> Iterator[Any]:
    """The members of a type that may be a union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from plain_types(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from plain_types(member)
    else:
        yield annotation


def read_as(node: yaml.Node, annotations: Iterable[Any]) -> None:
    """Changes the tags of a value so that it is constructed as one of the given types, if it can be."""
    types = [member for annotation in annotations for member in plain_types(annotation)]
    if isinstance(node, yaml.SequenceNode):
        items = [item for member in types if get_origin(member) in (list, tuple) for item in get_args(member)]
        for child in node.value:
            read_as(child, items)
    elif isinstance(node, yaml.ScalarNode):
        _read_scalar(node, types)


def _read_scalar(node: yaml.ScalarNode, types: list[Any]) -> None:
    if str in types:
        if node.style is None and node.tag in (BOOL, INT, FLOAT, MERGE):
            node.tag = STR
        return
    if not _NUMBERS.intersection(types):
        return
    if node.tag == STR and NoneType in types and node.value in NULLS:
        node.tag = NULL
    elif node.tag == STR and node.style is not None:
        node.tag = plain_tag(node.value)
    if node.tag == FLOAT and int in types and float not in types and (whole := _whole_number(node.value)) is not None:
        node.tag, node.value = INT, str(whole)


def _whole_number(text: str) -> int | None:
    """The integer that a float's text stands for exactly, if it does."""
    try:
        value = float(text)
    except ValueError:  # .inf, or whatever stands behind !!float
        return None
    return int(value) if value.is_integer() and abs(value) < _EXACT else None


def on_command_line(text: str, annotation: Any, source: str) -> yaml.Node:
    """The node of a value that a command line gives to a key.

    Text that is for a text key arrives whole and as it is written: only quotes around the whole and an unquoted `null`
    are YAML's. Everything else is YAML, without comments.

    Raises:
        UserError: it is no YAML, or a part of it would be lost as a comment.
    """
    if str in plain_types(annotation) and text not in ("null", "Null", "NULL"):
        return _quoted(text) or yaml.ScalarNode(STR, text, style='"')
    node = compose(text, source)
    ends = [token.end_mark.index for token in yaml.scan(text, Loader) if token.end_mark.index > token.start_mark.index]
    if text[max(ends, default=0) :].strip():
        raise UserError(f"{source}: {text[max(ends, default=0) :].strip()!r} would be lost as a comment: leave it out")
    return node or yaml.ScalarNode(NULL, "")


def _quoted(text: str) -> yaml.ScalarNode | None:
    """The node of a text that is one quoted YAML scalar from its beginning to its end."""
    if text[:1] not in ("'", '"') or text[-1:] != text[:1]:
        return None
    try:
        node = compose(text, "")
    except UserError:
        return None
    return node if isinstance(node, yaml.ScalarNode) and node.end_mark.index == len(text) else None
