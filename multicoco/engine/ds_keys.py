"""The keys of a ds_config: which are passed on to DeepSpeed, and which change nothing and may stand there as well."""

from collections.abc import Iterator
from typing import Any

from deepspeed.compile.config import CompileConfig
from deepspeed.runtime import constants
from deepspeed.runtime.config import HybridEngineConfig
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig

# Sections that only report are passed on whole; the last two DeepSpeed itself leaves unread.
REPORTS = {
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "log_level",
    "timers",
    "flops_profiler",
    "comms_logger",
    "tensorboard",
    "csv_monitor",
    "comms_config",
    "monitor_config",
}
# Every other key that is passed on is in one of the settings that tests/engine/test_zero.py compares with a single
# process.
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
# What changes nothing, whatever its value; the names of sections stand for all that is in them.
WITHOUT_EFFECT = {
    "zero_allow_untested_optimizer",  # AdamW is one that DeepSpeed has tested
    "zero_force_ds_cpu_optimizer",  # where the optimizer is offloaded, it is DeepSpeedCPUAdam
    "fp16.auto_cast",  # the model brings its pictures into its own precision
    "bf16.auto_cast",
    "aio",  # this and the rest is for NVMe, which is refused
    *(
        f"zero_optimization.offload_optimizer.{key}"
        for key in ("nvme_path", "buffer_count", "pipeline_read", "pipeline_write", "fast_init")
    ),
    "zero_optimization.offload_param.nvme_path",
}
SECTIONS: dict[str, type[DeepSpeedConfigModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "fp16": DeepSpeedFP16Config,
    "bf16": DeepSpeedBF16Config,
}


def _defaults(section: str, model: type[DeepSpeedConfigModel]) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield f"{section}.{field.alias or name}", field.get_default(call_default_factory=True)


def _constants(prefix: str, *names: str) -> Iterator[tuple[str, Any]]:
    for name in names:
        if hasattr(constants, name):  # not every release has all of them
            yield prefix + getattr(constants, name), getattr(constants, f"{name}_DEFAULT")


# A key at DeepSpeed's own default changes nothing either.
DEFAULTS: dict[str, Any] = {
    **{key: default for section, model in SECTIONS.items() for key, default in _defaults(section, model)},
    **dict(_defaults("zero_optimization.offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig)),
    **dict(_defaults("zero_optimization.offload_param", DeepSpeedZeroOffloadParamConfig)),
    **dict(_defaults("hybrid_engine", HybridEngineConfig)),
    **dict(_defaults("compile", CompileConfig)),
    **dict(
        _constants(
            "",
            "PRESCALE_GRADIENTS",
            "GRADIENT_PREDIVIDE_FACTOR",
            "GRADIENT_ALLREDUCE_OP",
            "DISABLE_ALLGATHER",
            "DATALOADER_DROP_LAST",
            "SEQ_PARALLEL_COMMUNICATION_DATA_TYPE",
            "MANAGED_GRADIENT_ACCUMULATION",
            "DISABLE_PYTHON_GC",
            "USE_DATA_BEFORE_EXPERT_PARALLEL",
        )
    ),
    **dict(
        _constants(
            "checkpoint.",
            "CHECKPOINT_TAG_VALIDATION",
            "LOAD_UNIVERSAL_CHECKPOINT",
            "USE_NODE_LOCAL_STORAGE_CHECKPOINT",
        )
    ),
    **dict(_constants("checkpoint.parallel_write.", "CHECKPOINT_PARALLEL_WRITE_PIPELINE_STAGE")),
    **dict(_constants("data_types.", "KEEP_IN_FP32_MODULES")),
    # what releases before 0.19 had, and files still say
    "sparse_gradients": False,
    "fp32_allreduce": False,
    "zero_optimization.cpu_offload_use_pin_memory": True,
    "zero_optimization.mics_shard_size": -1,
    "zero_optimization.mics_hierarchical_params_gather": False,
}


def same(given: Any, value: Any) -> bool:
    """Equal as DeepSpeed reads them: 1e3 is 1000 and Warn is WARN, but true is not 1."""
    if isinstance(given, str) and isinstance(value, str):
        return given.lower() == value.lower()
    return isinstance(given, bool) == isinstance(value, bool) and bool(given == value)


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key that is not a section, with its value."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
