"""The forms in which ds_configs are published, each with what the run config must say beside it."""

from typing import Any

BATCHES = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
COMMON = {**BATCHES, "gradient_clipping": "auto", "wall_clock_breakdown": False}
FP16 = {"loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2, "min_loss_scale": 1}
ADAMW = {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")}
WARMUP = dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), "auto")
PINNED = {"device": "cpu", "pin_memory": True}
STAGE_1 = {
    "stage": 1,
    "allgather_partitions": True,
    "allgather_bucket_size": 1e9,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 1e9,
    "contiguous_gradients": True,
}
STAGE_3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
}
INTERNVL = {
    "fp16": {"enabled": "auto", "auto_cast": True, **FP16, "initial_scale_power": 32},
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": "auto"},
    },
    **COMMON,
    "steps_per_print": 2000,
    "wall_clock_breakdown": True,
}

# name -> (content, keys of the run config)
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "InternVL, stage 1": ({"zero_optimization": STAGE_1, **INTERNVL}, {"bf16": True}),
    "InternVL, stage 1 in fp16": ({"zero_optimization": STAGE_1, **INTERNVL}, {"fp16": True}),
    "InternVL, stage 1 with a scheduler": (
        {
            "zero_optimization": STAGE_1,
            "scheduler": {"type": "WarmupDecayLR", "params": {**WARMUP, "total_num_steps": "auto"}},
            **INTERNVL,
        },
        {"bf16": True, "lr_schedule": "linear", "warmup_steps": 100},
    ),
    "InternVL, stage 3": (
        {
            "zero_optimization": {
                **STAGE_3,
                "reduce_bucket_size": 1e9,
                "stage3_prefetch_bucket_size": 1e9,
                "stage3_param_persistence_threshold": 1e7,
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            **INTERNVL,
        },
        {"bf16": True},
    ),
    "InternVL, stage 3 with offload": (
        {
            "zero_optimization": {
                **STAGE_3,
                "overlap_comm": False,
                "sub_group_size": 1e7,
                "stage3_max_live_parameters": 1e8,
                "stage3_max_reuse_distance": 1e8,
                "offload_param": PINNED,
                "offload_optimizer": PINNED,
            },
            **INTERNVL,
        },
        {"bf16": True},
    ),
    "LLaVA, stage 3 with offload": (
        {
            "fp16": {"enabled": "auto", **FP16},
            "bf16": {"enabled": True},
            "optimizer": ADAMW,
            "scheduler": {"type": "WarmupLR", "params": WARMUP},
            "zero_optimization": {
                **STAGE_3,
                "offload_optimizer": PINNED,
                "offload_param": PINNED,
                "gather_16bit_weights_on_model_save": True,
            },
            **COMMON,
            "steps_per_print": 1e5,
        },
        {"bf16": True},
    ),
    "transformers, stage 2": (
        {
            "fp16": {"enabled": "auto", **FP16},
            "optimizer": ADAMW,
            "scheduler": {"type": "WarmupLR", "params": WARMUP},
            "zero_optimization": {
                **STAGE_1,
                "stage": 2,
                "allgather_bucket_size": 2e8,
                "reduce_bucket_size": 2e8,
                "offload_optimizer": PINNED,
            },
            **COMMON,
            "steps_per_print": 2000,
        },
        {},
    ),
    "transformers, stage 3 of long ago": (
        {
            "fp16": {"enabled": "auto", **FP16},
            "zero_optimization": {
                "stage": 3,
                "cpu_offload": True,
                "cpu_offload_param": True,
                "cpu_offload_use_pin_memory": True,
                "overlap_comm": True,
                "contiguous_gradients": True,
                "stage3_max_live_parameters": 1e9,
                "stage3_max_reuse_distance": 1e9,
                "stage3_prefetch_bucket_size": 0.94e6,
                "stage3_param_persistence_threshold": 1e4,
                "reduce_bucket_size": 1e6,
                "sub_group_size": 1e14,
                "stage3_gather_fp16_weights_on_model_save": True,
            },
            **COMMON,
        },
        {},
    ),
    "LLaMA-Factory, stage 3 with offload": (
        {
            **BATCHES,
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
            "fp16": {"enabled": "auto", **FP16},
            "bf16": {"enabled": "auto"},
            "zero_optimization": {**STAGE_3, "offload_optimizer": PINNED, "offload_param": PINNED},
            "comms_config": {"verbose": False},
            "monitor_config": {"enabled": True, "tag": "DeepSpeedMonitor", "csv_monitor": {"enabled": False}},
        },
        {"bf16": True},
    ),
    "axolotl, stage 3 with offload": (
        {
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": 3,
                "offload_optimizer": PINNED,
                "offload_param": PINNED,
                "overlap_comm": True,
                "contiguous_gradients": True,
                "sub_group_size": 0,
                "reduce_bucket_size": "auto",
                "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto",
                "max_live_parameters": 0,
                "max_reuse_distance": 0,
                "gather_16bit_weights_on_model_save": True,
            },
            "bf16": {"enabled": True},
            **COMMON,
        },
        {"bf16": True},
    ),
    "OpenRLHF, stage 3": (
        {
            "steps_per_print": 100,
            "zero_optimization": {
                **dict.fromkeys(STAGE_3, "auto"),
                "stage": 3,
                "offload_param": {"device": "none"},
                "offload_optimizer": {"device": "none", "pin_memory": True},
                "zero_hpz_partition_size": 1,
                "zero_quantized_weights": False,
                "zero_quantized_gradients": False,
            },
            "bf16": {"enabled": True},
            "gradient_clipping": 1.0,
            "prescale_gradients": False,
            "wall_clock_breakdown": False,
            "data_types": {"grad_accum_dtype": None},
        },
        {"bf16": True, "max_grad_norm": 1.0},
    ),
    "DeepSpeed-Chat, stage 3": (
        {
            "train_micro_batch_size_per_gpu": 4,
            "steps_per_print": 10,
            "zero_optimization": {
                "stage": 3,
                "offload_param": {"device": "none"},
                "offload_optimizer": {"device": "none"},
                "stage3_param_persistence_threshold": 1e4,
                "stage3_max_live_parameters": 3e7,
                "stage3_prefetch_bucket_size": 3e7,
                "memory_efficient_linear": True,
            },
            "fp16": {"enabled": True, "loss_scale_window": 100},
            "gradient_clipping": 1.0,
            "prescale_gradients": False,
            "wall_clock_breakdown": False,
            "hybrid_engine": {"enabled": False, "max_out_tokens": 512, "inference_tp_size": 1},
        },
        {"fp16": True, "max_grad_norm": 1.0},
    ),
    "with all of DeepSpeed's own sections": (
        {
            **BATCHES,
            "gradient_clipping": "auto",
            "gradient_predivide_factor": 1.0,
            "communication_data_type": None,
            "sparse_gradients": False,
            "amp": {"enabled": False, "opt_level": "O1"},
            "zero_optimization": {**STAGE_1, "stage": 2, "round_robin_gradients": True, "elastic_checkpoint": False},
            "bf16": {"enabled": "auto", "immediate_grad_update": False},
            "optimizer": {
                "type": "Adam",
                "params": {"lr": "auto", "betas": "auto", "eps": 1e-8, "adam_w_mode": True, "torch_adam": True},
            },
            "activation_checkpointing": {
                "partition_activations": True,
                "cpu_checkpointing": False,
                "contiguous_memory_optimization": False,
                "number_checkpoints": None,
                "synchronize_checkpoint_boundary": False,
                "profile": False,
            },
            "flops_profiler": {"enabled": False, "profile_step": 1, "module_depth": -1, "top_modules": 3},
            "tensorboard": {"enabled": True, "output_path": "logs", "job_name": "run"},
            "wandb": {"enabled": False},
            "autotuning": {"enabled": False},
            "elasticity": {"enabled": False},
            "dataloader_drop_last": False,
            "memory_breakdown": False,
        },
        {},
    ),
}
