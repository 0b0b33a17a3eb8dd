"""What the run config, or MultiCoCo itself, decides of that which a ds_config can say."""

import json
from collections.abc import Iterator
from typing import Any

from multicoco.config import RunConfig
from multicoco.engine.ds_keys import same

# dotted key -> whose word it is, and the values that agree with it, the one to fill in first; without any: all do
Decided = dict[str, tuple[str, tuple[Any, ...]]]

REPEATED_SECTIONS = ("optimizer", "scheduler", "activation_checkpointing")
_SCHEDULERS = {"constant": "WarmupLR", "linear": "WarmupDecayLR", "cosine": "WarmupCosineLR"}
_ANY = ("", ())


def told(config: RunConfig, world_size: int) -> Decided:
    """What DeepSpeed is told, whether the ds_config says it or not."""
    accumulation = config.gradient_accumulation_steps
    global_batch = config.batch_size * accumulation * world_size
    factors = f"batch_size * gradient_accumulation_steps * {world_size} ranks in the run config"
    return {
        "train_micro_batch_size_per_gpu": ("batch_size in the run config", (config.batch_size,)),
        "gradient_accumulation_steps": ("gradient_accumulation_steps in the run config", (accumulation,)),
        "train_batch_size": (factors, (global_batch,)),
        "gradient_clipping": ("max_grad_norm in the run config", (config.max_grad_norm,)),
        "bf16.enabled": ("bf16 in the run config", (config.bf16,)),
        "fp16.enabled": ("fp16 in the run config", (config.fp16,)),
    }


def repeated(config: RunConfig, is_adam: bool) -> Decided:
    """What sections may repeat that DeepSpeed never sees, since optimizer and schedule are made by `engine.optimizer`.

    Args:
        is_adam: the optimizer section's type is Adam, which DeepSpeed takes for AdamW unless it says otherwise.
    """
    schedule = config.lr_schedule, _SCHEDULERS[config.lr_schedule]
    decided: Decided = {
        "optimizer.type": ("the optimizer of every run", ("AdamW", "Adam")),
        "optimizer.legacy_fusion": ("that of torch's AdamW", (False,)),
        "optimizer.params.lr": ("lr in the run config", (config.lr,)),
        "optimizer.params.betas": ("betas in the run config", (list(config.betas),)),
        "optimizer.params.weight_decay": ("weight_decay in the run config", (config.weight_decay,)),
        "optimizer.params.max_grad_norm": ("max_grad_norm in the run config", (config.max_grad_norm,)),
        "optimizer.params.eps": ("that of every run's AdamW", (1e-8,)),
        "optimizer.params.bias_correction": ("that of every run's AdamW", (True,)),
        "optimizer.params.amsgrad": ("that of every run's AdamW", (False,)),
        "optimizer.params.adam_w_mode": ("that of every run's AdamW", (True,)) if is_adam else _ANY,
        "optimizer.params.torch_adam": _ANY,  # who computes the same step
        "scheduler.type": (f"DeepSpeed's name for lr_schedule {schedule[0]}", schedule[1:]),
        "scheduler.params.warmup_min_lr": ("where every warm-up begins", (0,)),
        "scheduler.params.warmup_min_ratio": ("where every warm-up begins", (0,)),
        "scheduler.params.warmup_max_lr": ("lr in the run config", (config.lr,)),
        "scheduler.params.warmup_num_steps": ("warmup_steps in the run config", (config.warmup_steps,)),
        "scheduler.params.warmup_type": ("the form of every warm-up", ("linear",)),
        "scheduler.params.cos_min_ratio": ("where every cosine ends", (0,)),
        "scheduler.params.total_num_steps": ("the length that data and stages give a schedule", ("auto",)),
        "scheduler.params.last_batch_iteration": ("where a schedule starts", (-1,)),
        "activation_checkpointing.partition_activations": _ANY,  # over model-parallel ranks, of which there are none
        "activation_checkpointing.number_checkpoints": _ANY,  # for buffers that contiguous_memory_optimization makes
    }
    for key in ("cpu_checkpointing", "contiguous_memory_optimization", "synchronize_checkpoint_boundary", "profile"):
        ours = f"that of activation_checkpointing: {json.dumps(config.activation_checkpointing)} in the run config"
        decided[f"activation_checkpointing.{key}"] = (ours, (False,))
    return decided


def contradictions(key: str, given: Any, decided: Decided) -> Iterator[str]:
    """What is wrong with the value of a key in the table, if anything."""
    origin, values = decided[key]
    if given == "auto" or not values or any(same(given, value) for value in values):
        return
    remedy = "remove the section" if key == "optimizer.type" else 'set it to "auto", or make them equal'
    yield f"{key} is {json.dumps(given)}, but {origin} is {json.dumps(values[0])}: {remedy}"
