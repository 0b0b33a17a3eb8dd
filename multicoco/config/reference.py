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
    return "null" if annotation is type(None) else annotation.__name__


def config_reference() -> str:
    """All keys as a Markdown table: docs/config.md."""
    lines = ["# Run config", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in all_keys(RunConfig):
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        lines.append(f"| `{key}` | {_type_name(field.annotation)} | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(config_reference(), end="")
