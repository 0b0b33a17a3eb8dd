"""A ds_config (JSON) and the run config made one: "auto" values filled in, contradictions refused. No torch."""

import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multicoco.config import RunConfig, nearest
from multicoco.errors import UserError

# What a ds_config may say beside what the run config decides. Sections that only report are taken whole; every other
# key is in one of the settings that tests/engine/test_zero.py compares with a single process.
_REPORTS = {
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "flops_profiler",
    "comms_logger",
    "tensorboard",
    "csv_monitor",
}
TRIED = {
    "communication_data_type",
    "data_types.grad_accum_dtype",
    *(
        f"fp16.{key}"
        for key in (
            "loss_scale",
            "initial_scale_power",
            "loss_scale_window",
            "hysteresis",
            "consecutive_hysteresis",
            "min_loss_scale",
        )
    ),
    *(
        f"zero_optimization.{key}"
        for key in (
            "stage",
            "contiguous_gradients",
            "reduce_scatter",
            "reduce_bucket_size",
            "use_multi_rank_bucket_allreduce",
            "allgather_partitions",
            "allgather_bucket_size",
            "overlap_comm",
            "round_robin_gradients",
            "sub_group_size",
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
            "stage3_gather_16bit_weights_on_model_save",
            "stage3_use_all_reduce_for_fetch_params",
            "stage3_allgather_sequential",
            "zero_hpz_partition_size",
        )
    ),
    *(f"zero_optimization.offload_optimizer.{key}" for key in ("device", "pin_memory", "ratio")),
    *(
        f"zero_optimization.offload_param.{key}"
        for key in ("device", "pin_memory", "buffer_count", "buffer_size", "max_in_cpu")
    ),
}


@dataclass(frozen=True)
class ModelShape:
    """What ZeRO-3's "auto" sizes follow from.

    Attributes:
        hidden_size: of the language model.
        parameters: numbers in the whole model.
        decoder_parameters: numbers in what every latent pass walks through.
        passes: over the language model, in the stage with the most.
    """

    hidden_size: int
    parameters: int
    decoder_parameters: int
    passes: int


def resolve_ds_config(path: Path, config: RunConfig, world_size: int, shape: ModelShape) -> dict:
    """Loads a ds_config and fills in what the run config decides.

    A key of the run config's that is absent counts as "auto": DeepSpeed's own default (gradient clipping at 1.0, for
    one) never applies unseen.

    Raises:
        UserError: unreadable, a value that contradicts the run config (both are named), an "auto" that nothing fills.
    """
    ds_config = _read(path)
    for key, instead in (("scheduler", "lr_schedule"), ("activation_checkpointing", "activation_checkpointing")):
        if key in ds_config:
            raise UserError(f"{path}: {key} is decided by {instead} in the run config: remove it here")
    for key in ("leaf_module", "stage3_module_granularity_threshold"):
        if key in ds_config.get("zero_optimization", {}):
            raise UserError(
                f"{path}: zero_optimization.{key} cannot be used with latent passes: DeepSpeed reduces a leaf's "
                "gradients once for each of its calls, and a step has one call per pass: remove it"
            )
    stage = ds_config.setdefault("zero_optimization", {}).setdefault("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage is {stage!r}, it must be 0, 1, 2 or 3")

    if stage == 0 and config.fp16:
        raise UserError(
            f"{path}: zero_optimization.stage is 0 and fp16 is true in the run config: without ZeRO, DeepSpeed 0.19 "
            "divides gradients by a loss scale that the loss was never multiplied with, and does not clip them: use "
            "stage 1, or bf16"
        )
    _check_offload(ds_config["zero_optimization"], path)

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
    for key, _ in leaves(ds_config.pop("optimizer", {}), "optimizer."):
        if key not in owned and key != "optimizer.type":
            raise UserError(f"{path}: {key} has no counterpart in the run config and would not take effect: remove it")
    _check_keys(ds_config, owned, path)
    for key, value in leaves(ds_config):  # the others are checked by DeepSpeed
        if key in ("steps_per_print", "zero_optimization.stage3_max_live_parameters") and not isinstance(value, int):
            raise UserError(f"{path}: {key} must be a whole number, not {value!r}")
        if key == "data_types.grad_accum_dtype" and value not in ("fp32", "fp16", "bf16"):
            raise UserError(f"{path}: {key} must be fp32, fp16 or bf16, not {value!r}")

    zero = ds_config["zero_optimization"]
    sizes = {  # the first three as in transformers
        "reduce_bucket_size": shape.hidden_size**2,
        "stage3_prefetch_bucket_size": int(0.9 * shape.hidden_size**2),
        "stage3_param_persistence_threshold": 10 * shape.hidden_size,
        "stage3_max_reuse_distance": _reuse_distance(zero.get("stage3_max_live_parameters", 10**9), shape),
    }
    zero.update({key: value for key, value in sizes.items() if zero.get(key) == "auto"})
    if unfilled := [key for key, value in leaves(ds_config) if value == "auto"]:
        raise UserError(f'{path}: "auto" has no value in the run config for {", ".join(unfilled)}: give one')
    return ds_config


def _check_keys(ds_config: dict, owned: Container[str], path: Path) -> None:
    for key, _ in leaves(ds_config):
        if key in owned or key in TRIED or key.partition(".")[0] in _REPORTS:
            continue
        meant = nearest(key, sorted(TRIED))
        raise UserError(
            f"{path}: {key} is no key that training with latent passes has been tried with: "
            + (f"did you mean {meant}?" if meant else "remove it")
        )


def _check_offload(zero: dict, path: Path) -> None:
    for key, stages, deprecated in (
        ("offload_optimizer", (1, 2, 3), "cpu_offload"),
        ("offload_param", (3,), "cpu_offload_param"),
    ):
        offload = zero.get(key, {})
        if not isinstance(offload, dict):
            raise UserError(f"{path}: zero_optimization.{key} must be a JSON object, not {json.dumps(offload)}")
        if deprecated in zero:
            raise UserError(
                f"{path}: zero_optimization.{deprecated} is deprecated by DeepSpeed and not read here: write "
                f'"{key}": {{"device": "cpu"}}'
            )
        if offload.get("device") == "nvme":
            raise UserError(
                f"{path}: zero_optimization.{key}.device is nvme, with which DeepSpeed 0.19 trains to other losses "
                "than without offload (optimizer), or not at all in fp32 (parameters). Use cpu"
            )
        if offload.get("device", "none") != "none" and zero["stage"] not in stages:
            raise UserError(
                f"{path}: zero_optimization.{key} takes effect only in stage {' or '.join(map(str, stages))}, and "
                f"stage is {zero['stage']}: remove it, or raise the stage"
            )


def _reuse_distance(max_live: int, shape: ModelShape) -> int:
    """How many numbers ahead ZeRO-3 looks for the next use of a parameter before it lets go of it.

    Where all parameters may live at once: as far as a step reaches, so each is gathered once. Where the language model
    may: as far as from one latent pass to the next, in a backward pass that recomputes the forward one; then only the
    vision tower, and layers between forward and backward, are gathered again. Otherwise: no further than may live.
    """
    if max_live >= shape.parameters:
        return 3 * shape.passes * shape.parameters  # forward, recomputed forward, backward
    if max_live >= shape.decoder_parameters:
        return 2 * shape.decoder_parameters
    return max_live


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


def leaves(section: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key that is not a section, with its value."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
