"""Names that a run config gives: of what is registered, and of a folder."""

import re

from multicoco.config.section import expand
from multicoco.errors import UserError
from multicoco.registry import Kind, check_name


def registered(kind: Kind, name: str | None) -> str | None:
    try:
        if name is not None:
            check_name(kind, name)
    except UserError as error:
        raise ValueError(str(error)) from error
    return name


def folder_name(name: str) -> str:
    expanded = expand(name)
    if not re.fullmatch(r"[^/\\]*[^/\\.\s][^/\\]*", expanded):
        raise ValueError("must be the name of a folder, without separators")
    return expanded
