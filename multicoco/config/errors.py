"""What is wrong with a run config: each key, where it was set, and the valid key that may have been meant."""

import difflib
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from multicoco.config.schema import RunConfig, all_keys
from multicoco.errors import UserError

_LONGEST_VALUE = 200  # that a message shows of a value
_CLEARER = {  # than pydantic's message of the type
    "model_type": "must be a mapping of keys",
    "dict_type": "must be a mapping of keys",
    "tuple_type": "must be a list, such as [0.9, 0.999]",
    "missing": "must have one entry more",
    "list_type": "must be a list, such as [a, b]",
}


@cache
def _valid() -> tuple[str, ...]:
    """All keys and sections."""
    fields = dict(all_keys(RunConfig))
    return (*fields, *dict.fromkeys(name.rpartition(".")[0] for name in fields if "." in name))


def describe(error: ValidationError, places: dict[str, str]) -> list[str]:
    """One line per wrong key, or per impossible combination of keys."""
    problems_of: dict[str, list[ErrorDetails]] = {}
    for problem in error.errors():
        if not problem["loc"]:  # from the schema's check of combinations, which names the keys itself
            return [str(problem["ctx"]["error"])]
        parts = [str(part) for part in problem["loc"]]
        prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        # pydantic goes on below the key, with members of unions and indices of lists
        key = prefixes[0] if problem["type"] == "extra_forbidden" else next(p for p in prefixes if p in _valid())
        problems_of.setdefault(key, []).append(problem)
    lines = []
    for key, problems in problems_of.items():
        where = f"{key} ({places[key]})" if key in places else key
        if problems[0]["type"] == "extra_forbidden":
            lines.append(f"{where}: {_unknown(key)}")
        elif key not in places:
            lines.append(f"{where}: missing, every run config needs it")
        else:
            lines.append(f"{where}: {' or '.join(dict.fromkeys(map(_wrong, problems)))} ({_got(problems[0]['input'])})")
    return lines


def _wrong(problem: ErrorDetails) -> str:
    if problem["type"] == "value_error":  # from a check of ours, which says it better
        return str(problem["ctx"]["error"])
    return _CLEARER.get(problem["type"], problem["msg"].replace("Input should be", "must be"))


def _got(value: Any) -> str:
    text = repr(value)
    return f"got {text}" if len(text) <= _LONGEST_VALUE else f"got {text[:_LONGEST_VALUE]}..."


def _unknown(key: str) -> str:
    meant = nearest(key, _valid())
    return "unknown key" + (f", did you mean {meant}?" if meant else "")


def check_keys(keys: Iterable[str], option: str) -> None:
    """Checks names of keys, or of sections, that a command line gives.

    Raises:
        UserError: there is no such key.
    """
    if unknown := [f"{option} {key}: {_unknown(key)}" for key in keys if key not in _valid()]:
        raise UserError("\n  ".join(unknown))


def nearest(key: str, valid: Collection[str]) -> str | None:
    """The other valid key most like this one, as a whole or by its last part: c_thougt is coconut.c_thought."""

    def likeness(name: str) -> tuple[float, float]:
        pairs = ((key, name), (key.rpartition(".")[2], name.rpartition(".")[2]))
        whole, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return max(whole, last), whole

    # not what was written: neither itself nor the section that it is in
    best = max((name for name in valid if not f"{key}.".startswith(f"{name}.")), key=likeness)
    return best if likeness(best)[0] >= 0.75 else None
