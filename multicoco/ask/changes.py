"""What is done to the thoughts of one question, as it is written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from multicoco.errors import UserError
from multicoco.interventions import Intervention, parse

_FROM_FILE = re.compile(r"(?:only\(\s*(\d+)\s*,\s*)?transplant=(.+?)(?(1)\))", re.DOTALL)


@dataclass(frozen=True)
class Change:
    """An intervention; of a transplant from another picture (of a model for text: question), with its file."""

    spec: Intervention
    file: str | None = None


def read_changes(intervene: Sequence[str | Sequence[str]]) -> dict[str, list[Change]]:
    """By a name that says what is done together.

    Raises:
        UserError: one is written otherwise, or several change something else than single thoughts.
    """
    plans: dict[str, list[Change]] = {}
    for specs in intervene:
        parts = [specs] if isinstance(specs, str) else [*specs]
        changes = [_read(part) for part in parts]
        if len(changes) > 1 and any(change.spec.kind != "only" for change in changes):
            raise UserError(f"{' + '.join(parts)}: only single thoughts are changed together, as only(2, zero)")
        if changes:
            plans[" + ".join(_name(change) for change in changes)] = changes
    return plans


def _read(part: str) -> Change:
    try:
        if match := _FROM_FILE.fullmatch(part.strip()):
            return Change(parse(f"only({match[1]}, transplant)" if match[1] else "transplant"), match[2])
        return Change(parse(part))
    except ValueError as error:
        raise UserError(str(error)) from error


def _name(change: Change) -> str:
    if change.file is None:
        return str(change.spec)
    return str(change.spec).replace("transplant", f"transplant={change.file}")
