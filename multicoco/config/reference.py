"""docs/config.md, from the schema: python -m multicoco.config.reference > docs/config.md"""

import json
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from multicoco.config.schema import RunConfig, all_keys


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " / ".join(get_args(annotation))
    if get_origin(annotation) in (UnionType, Union):
        return " or ".join(dict.fromkeys(map(_type_name, get_args(annotation))))
    if get_origin(annotation) in (list, tuple):
        return f"list of {_type_name(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"mapping to {_type_name(get_args(annotation)[1])}"
    return "null" if annotation is type(None) else annotation.__name__


_HOW_IT_IS_READ = """\
# Run config

A run config is one YAML file. `inherits: other.yaml`, relative to the file itself, names the one that all other keys
are taken from; without it that is the `base.yaml` beside it, if there is one, and with `inherits: null` none. Sections
merge key by key, everything else is replaced, lists too. `coconut.c_thought: 2` is short for `coconut: {c_thought: 2}`.

- **Paths** (of output_dir, model_id, deepspeed, ...), names of runs, and paths that commands take: `~`, `~user`,
  `$NAME` and `${NAME}` are expanded when the config is read, and the run's own config.yaml holds what they became. A
  variable that is not set, or empty, is an error. A path that begins with a literal `~` is written `./~`.
- **Text** is taken as it is written: `name: 007`, `project: 2e5` and `wandb.tags: [on, 2026-11-25]` need no quotes.
- **Numbers** may be quoted, and a whole one written `1e3` or `2.0`. `010` is ten. `None` is `null`.
- **`--set key=value`**: text arrives whole, ` #` and all, unless the whole of it stands in YAML's quotes
  (`--set 'project="two\\nlines"'`); an unquoted `null` is null. Values of other types are YAML, without comments.
"""


def config_reference() -> str:
    """How a run config is read, and all keys as a Markdown table: docs/config.md."""
    lines = [_HOW_IT_IS_READ, "| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in all_keys(RunConfig):
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        lines.append(f"| `{key}` | {_type_name(field.annotation)} | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(config_reference(), end="")
