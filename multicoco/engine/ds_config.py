"""A ds_config and the run config made one: "auto" values filled in, contradictions refused.

ds_file.py     reads the file
ds_keys.py     the keys that are passed on to DeepSpeed, and those that change nothing
ds_decided.py  the keys that the run config decides
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspeed.runtime.config import DtypeEnum
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from pydantic import ValidationError

from multicoco.config import RunConfig, nearest
from multicoco.engine.ds_decided import REPEATED_SECTIONS, Decided, contradictions, repeated, told
from multicoco.engine.ds_file import modernize, read_ds_config
from multicoco.engine.ds_keys import DEFAULTS, REPORTS, SECTIONS, TRIED, WITHOUT_EFFECT, leaves, same
from multicoco.errors import UserError

_OFFLOADS = {"offload_optimizer": (1, 2, 3), "offload_param": (3,)}  # and the stages in which they take effect
_OBJECTS = (*SECTIONS, *(f"zero_optimization.{key}" for key in _OFFLOADS), *REPEATED_SECTIONS)
_SIZES = (
    "reduce_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_reuse_distance",
)


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


def resolve_ds_config(path: Path, config: RunConfig, world_size: int, shape: ModelShape) -> dict[str, Any]:
    """Loads a ds_config and fills in what the run config decides.

    A key of the run config's that is absent counts as "auto": DeepSpeed's own default (gradient clipping at 1.0, for
    one) never applies unseen. What only repeats the run config, or a default of DeepSpeed's, is taken and left out.

    Raises:
        UserError: the file cannot be read, or all that is wrong with it: values that contradict the run config (both
            are named), keys that change training and were not tried with latent passes, values of a wrong type.
    """
    ds_config = read_ds_config(path)
    decided = told(config, world_size)
    problems = [
        *modernize(ds_config),
        *_take_out_what_cannot_be_read(ds_config),
        *_check_zero(ds_config.setdefault("zero_optimization", {}), config),
        *_fill_in(ds_config, decided),
        *_take_out_what_is_repeated(ds_config, config),
        *_keep_what_was_tried(ds_config, decided),
        *_convert(ds_config),
    ]
    if problems:
        raise UserError(f"{path}: {problems[0]}" if len(problems) == 1 else "\n  ".join([f"{path}:", *problems]))
    zero, hidden_size = ds_config["zero_optimization"], shape.hidden_size
    reuse_distance = _reuse_distance(zero.get("stage3_max_live_parameters", 10**9), shape)
    # the first three as in transformers
    sizes = zip(_SIZES, (hidden_size**2, int(0.9 * hidden_size**2), 10 * hidden_size, reuse_distance), strict=True)
    zero.update({key: size for key, size in sizes if zero.get(key) == "auto"})
    return ds_config


def _take_out_what_cannot_be_read(ds_config: dict[str, Any]) -> Iterator[str]:
    """Values that are no section where one must be, names with dots, which no section has, and infinite numbers."""
    for name in (*_OBJECTS, "optimizer.params", "scheduler.params"):
        *parents, leaf = name.split(".")
        section = ds_config.get(parents[0], {}) if parents else ds_config
        if not isinstance(section.get(leaf, {}), dict):
            yield f"{name} must be a JSON object, not {json.dumps(section.pop(leaf))}"
    for section in list(_sections(ds_config)):
        for key, value in list(section.items()):
            if "." in key:
                yield f"{key} is one name with a dot in it: write {key.rpartition('.')[2]} into the section it is of"
            elif isinstance(value, float) and not math.isfinite(value):
                yield f"{key} is {value}: give a number"
            else:
                continue
            del section[key]


def _check_zero(zero: dict[str, Any], config: RunConfig) -> Iterator[str]:
    """What DeepSpeed would take, and then train otherwise than the file says."""
    for key in ("leaf_module", "stage3_module_granularity_threshold"):
        if zero.pop(key, 0) != 0:
            yield (
                f"zero_optimization.{key} cannot be used with latent passes: DeepSpeed reduces a leaf's gradients once "
                "for each of its calls, and a step has one call per pass: remove it"
            )
    stage = zero.setdefault("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        yield f"zero_optimization.stage is {json.dumps(stage)}, it must be 0, 1, 2 or 3"
        zero["stage"] = 3  # in which every other key can be looked at
        return
    if stage == 0 and config.fp16:
        yield (
            "zero_optimization.stage is 0 and fp16 is true in the run config: without ZeRO, DeepSpeed 0.19 divides "
            "gradients by a loss scale that the loss was never multiplied with, and does not clip them: use stage 1, "
            "or bf16"
        )
    for key, stages in _OFFLOADS.items():
        device = zero.get(key, {}).get("device", "none")
        if device == "nvme":
            yield (
                f"zero_optimization.{key}.device is nvme, with which DeepSpeed 0.19 trains to other losses than "
                "without offload (optimizer), or not at all in fp32 (parameters): use cpu"
            )
        elif device not in ("none", "auto") and stage not in stages:
            yield (
                f"zero_optimization.{key} takes effect only in stage {' or '.join(map(str, stages))}, and stage is "
                f"{stage}: remove it, or raise the stage"
            )


def _fill_in(ds_config: dict[str, Any], decided: Decided) -> Iterator[str]:
    given = dict(leaves(ds_config))
    for key, (_, values) in decided.items():
        yield from contradictions(key, given.get(key, "auto"), decided)
        _put(ds_config, key, values[0])


def _take_out_what_is_repeated(ds_config: dict[str, Any], config: RunConfig) -> Iterator[str]:
    decided = repeated(config, is_adam=same(ds_config.get("optimizer", {}).get("type"), "Adam"))
    for name in REPEATED_SECTIONS:
        for key, value in leaves(ds_config.pop(name, {}), f"{name}."):
            if key in decided:
                yield from contradictions(key, value, decided)
            else:
                yield f"{key} has no counterpart in the run config and would not take effect: remove it"


def _keep_what_was_tried(ds_config: dict[str, Any], decided: Decided) -> Iterator[str]:
    """Takes out all other keys; of these, those that change nothing are no problem."""
    kept: dict[str, Any] = {}
    for key, value in leaves(_without_what_is_off(ds_config)):
        section = key.partition(".")[0]
        is_default = key in DEFAULTS and (same(value, DEFAULTS[key]) or value == "auto")
        if key in decided or section in REPORTS:
            _put(kept, key, value)
        elif key in TRIED and value == "auto" and not key.endswith(_SIZES):
            if not is_default:  # DeepSpeed takes "auto" for its default, but not where it has none
                yield f'{key} is "auto", for which the run config has no value: give one'
        elif key in TRIED:
            _put(kept, key, value)
        elif is_default or key in WITHOUT_EFFECT or section in WITHOUT_EFFECT:
            continue
        elif key in DEFAULTS:
            default = json.dumps(DEFAULTS[key], default=str)
            yield f"{key} is {json.dumps(value)}, and only DeepSpeed's default, {default}, has been tried: remove it"
        else:
            meant = nearest(key, sorted(TRIED | decided.keys()))
            remedy = f"did you mean {meant}?" if meant else "remove it"
            yield f"{key} is no key that training with latent passes has been tried with: {remedy}"
    ds_config.clear()
    ds_config.update(kept)


def _without_what_is_off(section: dict[str, Any]) -> dict[str, Any]:
    """Less the sections that are not enabled, of whatever name; those of a precision stay, for the run config."""
    return {
        key: _without_what_is_off(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if key in SECTIONS or not isinstance(value, dict) or value.get("enabled") is not False
    }


def _convert(ds_config: dict[str, Any]) -> Iterator[str]:
    """Makes every value what DeepSpeed reads it as, such as whole numbers of 1e9, and yields those of another type."""
    for key, value in list(leaves(ds_config)):
        if key in DEFAULTS:
            if isinstance(value, bool) and not isinstance(DEFAULTS[key], bool | None):
                yield f"{key} must be a number, not {json.dumps(value)}"
        elif key in ("communication_data_type", "data_types.grad_accum_dtype"):
            try:
                _put(ds_config, key, DtypeEnum(value).name)
            except ValueError:
                yield f"{key} must be fp32, fp16 or bf16, not {value!r}"
        elif isinstance(value, float) and value.is_integer():
            _put(ds_config, key, int(value))
    steps = ds_config.get("steps_per_print", 1)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        yield f"steps_per_print must be a whole number, 1 or more, not {steps!r}"
    for name, model in SECTIONS.items():
        section = ds_config[name]
        try:
            _take_over(section, model(**section))
        except ValidationError as error:
            for problem in error.errors():
                key = ".".join([name, *map(str, problem["loc"])])
                wrong = problem["msg"].replace("Input should be", "must be")
                yield f"{key}: {wrong} (got {problem['input']!r})" if problem["loc"] else f"{key}: {wrong}"


def _take_over(section: dict[str, Any], read: DeepSpeedConfigModel) -> None:
    names = {field.alias or name: name for name, field in type(read).model_fields.items()}
    for key, value in section.items():
        if isinstance(value, dict):
            _take_over(value, getattr(read, names[key]))
        elif value != "auto":
            section[key] = getattr(read, names[key])


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


def _sections(section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield section
    for value in section.values():
        if isinstance(value, dict):
            yield from _sections(value)


def _put(ds_config: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        ds_config = ds_config.setdefault(section, {})
    ds_config[leaf] = value
