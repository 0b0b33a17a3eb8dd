"""What is wrong with a run config: each key, where it was set, and the valid key that may have been meant."""

import difflib
from collections.abc import Sequence

from pydantic import ValidationError

from multicoco.config.schema import RunConfig, all_keys

_CLEARER = {  # than pydantic's message of the type
    "model_type": "must be a mapping of keys",
    "tuple_type": "must be a list",
    "missing": "must have one entry more",
    "string_pattern_mismatch": "must be the name of a folder, without separators",
}


def describe(error: ValidationError, origins: dict[str, str]) -> list[str]:
    """One line per wrong key, or per impossible combination of keys."""
    fields = dict(all_keys(RunConfig))
    valid = [*fields, *{name.rpartition(".")[0] for name in fields if "." in name}]  # keys and sections
    problems_of: dict[str, list] = {}
    for problem in error.errors():
        if not problem["loc"]:  # from the schema's check of combinations, which names the keys itself
            return [str(problem["ctx"]["error"])]
        parts = [str(part) for part in problem["loc"]]
        prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        # pydantic goes on below the key, with members of unions and indices of lists
        key = prefixes[0] if problem["type"] == "extra_forbidden" else next(p for p in prefixes if p in valid)
        problems_of.setdefault(key, []).append(problem)
    lines = []
    for key, problems in problems_of.items():
        where = f"{key} ({origins[key]})" if key in origins else key
        if problems[0]["type"] == "extra_forbidden":
            meant = nearest(key, valid)
            lines.append(f"{where}: unknown key" + (f", did you mean {meant}?" if meant else ""))
        elif key not in origins:
            lines.append(f"{where}: missing, every run config needs it")
        else:
            wrong = [_CLEARER.get(p["type"], p["msg"].replace("Input should be", "must be")) for p in problems]
            lines.append(f"{where}: {' or '.join(dict.fromkeys(wrong))} (got {problems[0]['input']!r})")
    return lines


def nearest(key: str, valid: Sequence[str]) -> str | None:
    """The valid key most like this one, as a whole or by its last part: c_thougt is coconut.c_thought."""

    def likeness(name: str) -> tuple[float, float]:
        pairs = ((key, name), (key.rpartition(".")[2], name.rpartition(".")[2]))
        whole, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return max(whole, last), whole

    best = max(valid, key=likeness)
    return best if likeness(best)[0] >= 0.75 else None
