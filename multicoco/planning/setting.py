"""What the planner chooses, and the ds_config and the keys of the run config that stand for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from multicoco.config import RunConfig
from multicoco.planning.geometry import ModelGeometry

_BUCKET = 500_000_000  # numbers, as in ds_configs/
_MAX_LIVE = 1_000_000_000  # likewise


@dataclass(frozen=True)
class Setting:
    """What the planner chooses.

    Attributes:
        stage: of ZeRO.
        offload: what lies in the CPU's memory: "none", "optimizer", or "all", parameters too.
        checkpointing: of activations.
        micro_batch: examples per rank and pass.
        accumulation: micro-batches per optimizer step.
        ranks: processes, one GPU each.
        reduce_bucket, max_live: numbers in a bucket of gradients, and gathered at a time; of the ds_config.
        foreach: AdamW updates all tensors at once, as on GPUs, or one after the other, as on CPUs.
    """

    stage: int
    offload: str
    checkpointing: bool
    micro_batch: int
    accumulation: int
    ranks: int
    reduce_bucket: int
    max_live: int
    foreach: bool = True


def settings(config: RunConfig, model: ModelGeometry, ranks: int) -> Iterator[Setting]:
    """Every one that keeps the run config's global batch on so many ranks."""
    examples = config.batch_size * config.gradient_accumulation_steps
    sizes = [2**power for power in range(examples.bit_length()) if examples % 2**power == 0]
    # all parameters, or those that stay through the latent passes, or as many as in ds_configs/
    live_limits = sorted({max(_MAX_LIVE, number) for number in (model.parameters, model.decoder_parameters, 0)})
    for stage in range(4):
        bucket = model.text.hidden_size**2 if stage == 3 else _BUCKET
        for offload in ["none", *["optimizer"] * (stage > 0), *["all"] * (stage == 3)]:
            for checkpointing in (False, True):
                for size in sizes:
                    for max_live in live_limits if stage == 3 else [_MAX_LIVE]:
                        yield Setting(stage, offload, checkpointing, size, examples // size, ranks, bucket, max_live)


def ds_config(setting: Setting) -> dict[str, Any]:
    """The ds_config of a setting; what the run config decides stays "auto"."""
    zero: dict[str, Any] = {"stage": setting.stage}
    if setting.stage == 3:
        zero |= {
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": setting.max_live,
            "stage3_max_reuse_distance": "auto",
        }
    elif setting.stage:
        zero |= {
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": setting.reduce_bucket,
            "allgather_bucket_size": setting.reduce_bucket,
        }
    on_cpu = {"device": "cpu", "pin_memory": True}
    if setting.offload != "none":
        zero["offload_optimizer"] = on_cpu
    if setting.offload == "all":
        zero["offload_param"] = on_cpu
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    return {
        **dict.fromkeys(auto, "auto"),
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
    }


def overrides(setting: Setting) -> dict[str, Any]:
    """The keys of the run config that go with a setting's ds_config."""
    return {
        "batch_size": setting.micro_batch,
        "gradient_accumulation_steps": setting.accumulation,
        "activation_checkpointing": setting.checkpointing,
    }
