"""A ds_config (JSON) and the run config made one: "auto" values filled in, contradictions refused. No torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multicoco.config import RunConfig
from multicoco.errors import UserError


def resolve_ds_config(path: Path, config: RunConfig, world_size: int, hidden_size: int) -> dict:
    """Loads a ds_config and fills in what the run config decides.

    A key of the run config's that is absent counts as "auto": DeepSpeed's own default (gradient clipping at 1.0, for
    one) never applies unseen.

    Args:
        hidden_size: of the language model; ZeRO-3's "auto" sizes follow from it, as in transformers.

    Raises:
        UserError: unreadable, a value that contradicts the run config (both are named), an "auto" that nothing fills.
    """
    ds_config = _read(path)
    for key, instead in (("scheduler", "lr_schedule"), ("activation_checkpointing", "activation_checkpointing")):
        if key in ds_config:
            raise UserError(f"{path}: {key} is decided by {instead} in the run config: remove it here")
    stage = ds_config.setdefault("zero_optimization", {}).setdefault("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage is {stage!r}, it must be 0, 1, 2 or 3")

    global_batch = config.batch_size * config.gradient_accumulation_steps * world_size
    owned = {
        "train_micro_batch_size_per_gpu": ("batch_size", config.batch_size),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", config.gradient_accumulation_steps),
        "train_batch_size": (f"batch_size * gradient_accumulation_steps * {world_size} ranks", global_batch),
        "gradient_clipping": ("max_grad_norm", config.max_grad_norm),
        "bf16.enabled": ("bf16", config.bf16),
        "fp16.enabled": ("fp16", config.fp16),
    }
    if "optimizer" in ds_config:
        kind = ds_config["optimizer"].get("type")
        if kind not in ("AdamW", "Adam"):
            raise UserError(f"{path}: optimizer.type is {kind!r}, MultiCoCo trains with AdamW: remove the section")
        owned |= {
            "optimizer.params.lr": ("lr", config.lr),
            "optimizer.params.betas": ("betas", list(config.betas)),
            "optimizer.params.weight_decay": ("weight_decay", config.weight_decay),
        }
    for key, (run_key, value) in owned.items():
        _fill(ds_config, key, value, f"{run_key} in the run config", path)
    # once checked, the section goes: the engine gets an AdamW made from the run config
    for key, _ in _leaves(ds_config.pop("optimizer", {}), "optimizer."):
        if key not in owned and key != "optimizer.type":
            raise UserError(f"{path}: {key} has no counterpart in the run config and would not take effect: remove it")

    sizes = {
        "reduce_bucket_size": hidden_size * hidden_size,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    zero = ds_config["zero_optimization"]
    zero.update({key: value for key, value in sizes.items() if zero.get(key) == "auto"})
    if unfilled := [key for key, value in _leaves(ds_config) if value == "auto"]:
        raise UserError(f'{path}: "auto" has no value in the run config for {", ".join(unfilled)}: give one')
    return ds_config


def _read(path: Path) -> dict:
    try:
        ds_config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"ds_config {path} cannot be read: {error}") from error
    if not isinstance(ds_config, dict):
        raise UserError(f"ds_config {path} must be a JSON object")
    for section in ("zero_optimization", "bf16", "fp16", "optimizer"):
        if not isinstance(ds_config.get(section, {}), dict):
            raise UserError(f"{path}: {section} must be a JSON object, not {ds_config[section]!r}")
    return ds_config


def _fill(ds_config: dict, key: str, value: Any, origin: str, path: Path) -> None:
    """Sets a dotted key that is "auto" or absent; anything else must equal the value."""
    *sections, leaf = key.split(".")
    for section in sections:
        ds_config = ds_config.setdefault(section, {})
        if not isinstance(ds_config, dict):
            raise UserError(f"{path}: {section} must be a JSON object, not {ds_config!r}")
    given = ds_config.get(leaf, "auto")
    if given not in ("auto", value):
        raise UserError(
            f'{path}: {key} is {json.dumps(given)}, but {origin} is {json.dumps(value)}: set it to "auto", '
            "or make them equal"
        )
    ds_config[leaf] = value


def _leaves(section: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key that is not a section, with its value."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
