"""What a ds_config's file says: read as DeepSpeed reads it, in the newest spelling of every key."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hjson
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from multicoco.errors import UserError

_FIELDS = DeepSpeedZeroConfig.model_fields
_ZERO_SPELLINGS = {
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    # DeepSpeed takes max_live_parameters for stage3_max_live_parameters, and so on
    **{name: field.alias for name, field in _FIELDS.items() if field.alias is not None},
}
_ZERO_OFFLOADS = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}  # true or false


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys stood twice in it."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def read_ds_config(path: Path) -> dict[str, Any]:
    """JSON in any encoding of Unicode, or Hjson, which DeepSpeed takes too: comments, commas at the end, bare keys.

    A key that is null is left out: it says nothing.

    Raises:
        UserError: unreadable, no object, or keys that stand twice, of which DeepSpeed or JSON would drop one.
    """
    if path.is_dir():
        raise UserError(f"ds_config {path} is a folder: name the JSON file in it")
    try:
        raw = path.read_bytes()
        content = _parse(raw.decode(json.detect_encoding(raw)))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"ds_config {path} cannot be read: {error}") from error
    if not isinstance(content, _Object):
        raise UserError(f"ds_config {path} must be a JSON object")
    if twice := list(_keys_that_stand_twice(content)):
        raise UserError(f"{path}: {', '.join(twice)} stands twice in the file: keep the one that is meant")
    return _without_nulls(content)


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_Object)
    except ValueError:
        # an empty file would be an empty Hjson; errors are told in JSON's words, which most files are meant to be
        with suppress(ValueError, RecursionError):
            if text.strip():
                return hjson.loads(text, object_pairs_hook=_Object)
        raise


def _keys_that_stand_twice(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    yield from (f"{prefix}{key}" for key in getattr(section, "twice", []))
    for key, value in section.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from _keys_that_stand_twice(item, f"{prefix}{key}.")


def _without_nulls(section: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if value is not None or key == "stage"  # without ZeRO is 0, and not what someone left open
    }


def modernize(ds_config: dict[str, Any]) -> Iterator[str]:
    """Renames, in place, what DeepSpeed still takes under an older name, and yields what stands there under both."""
    yield from _rename(ds_config, "", {"bfloat16": "bf16"})
    zero = ds_config.get("zero_optimization", {})
    if isinstance(zero, bool):
        ds_config["zero_optimization"] = {"stage": int(zero)}
    elif isinstance(zero, dict):
        for old, new in _ZERO_OFFLOADS.items():
            if isinstance(zero.get(old), bool) and zero.pop(old):
                zero[old] = {"device": "cpu"}
                yield from _rename(zero, "zero_optimization.", {old: new})
        yield from _rename(zero, "zero_optimization.", _ZERO_SPELLINGS)


def _rename(section: dict[str, Any], prefix: str, spellings: dict[str, str]) -> Iterator[str]:
    for old, new in spellings.items():
        if old not in section:
            continue
        value = section.pop(old)
        if new in section:
            yield f"{prefix}{old} is another name for {prefix}{new}, and both are there: keep {new}"
        section.setdefault(new, value)
