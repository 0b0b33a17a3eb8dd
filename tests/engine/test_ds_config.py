import json
from pathlib import Path

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from multicoco.config import RunConfig
from multicoco.engine.ds_config import ModelShape, resolve_ds_config
from multicoco.errors import UserError

SHAPE = ModelShape(hidden_size=10, parameters=1000, decoder_parameters=600, passes=7)
DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"


def run_config(**fields) -> RunConfig:
    defaults = {
        "mode": "cot_train",
        "name": "x",
        "model_id": "m",
        "train_path": "t.json",
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.7,
        "lr": 3e-4,
    }
    return RunConfig(**(defaults | fields))


def resolve(tmp_path, ds_config, **fields) -> dict:
    path = tmp_path / "ds.json"
    path.write_text(ds_config if isinstance(ds_config, str) else json.dumps(ds_config))
    return resolve_ds_config(path, run_config(**fields), 3, SHAPE)


def refused(tmp_path, ds_config, **fields) -> str:
    with pytest.raises(UserError) as caught:
        resolve(tmp_path, ds_config, **fields)
    return str(caught.value)


OWNED = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "train_batch_size": 24,
    "gradient_clipping": 0.7,
}


@pytest.mark.parametrize("given", [{}, dict.fromkeys(OWNED, "auto"), OWNED])
def test_absent_auto_and_equal_values_come_from_the_run_config(tmp_path, given):
    resolved = resolve(tmp_path, given, bf16=True)
    assert {key: resolved[key] for key in OWNED} == OWNED
    assert resolved["bf16"] == {"enabled": True} and resolved["fp16"] == {"enabled": False}
    assert resolved["zero_optimization"]["stage"] == 0


@pytest.mark.parametrize(
    ("key", "value", "run_key"),
    [
        ("train_micro_batch_size_per_gpu", 5, "batch_size"),
        ("gradient_accumulation_steps", 1, "gradient_accumulation_steps"),
        ("train_batch_size", 8, "batch_size * gradient_accumulation_steps * 3 ranks"),
        ("gradient_clipping", 1.0, "max_grad_norm"),
    ],
)
def test_a_contradiction_names_both_keys_and_values(tmp_path, key, value, run_key):
    message = refused(tmp_path, {key: value})
    assert f"{key} is {value}" in message and f"{run_key} in the run config is {OWNED[key]}" in message


def test_contradictions_inside_sections(tmp_path):
    assert "bf16.enabled is true, but bf16 in the run config is false" in refused(tmp_path, {"bf16": {"enabled": True}})
    optimizer = {"type": "AdamW", "params": {"lr": 1e-3}}
    assert "optimizer.params.lr is 0.001, but lr in the run config" in refused(tmp_path, {"optimizer": optimizer})


def test_other_settings_of_a_precision_section_stay(tmp_path):
    scale = {"initial_scale_power": 8, "loss_scale_window": 100, "hysteresis": 1, "min_loss_scale": 2}
    given = {"zero_optimization": {"stage": 1}, "fp16": {"enabled": "auto", **scale}}
    assert resolve(tmp_path, given, fp16=True)["fp16"] == {"enabled": True, **scale}


def test_an_agreeing_optimizer_section_is_checked_and_left_to_the_engine(tmp_path):
    optimizer = {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.999], "weight_decay": 0.01}}
    assert "optimizer" not in resolve(tmp_path, {"optimizer": optimizer})


def test_zero3_sizes_follow_the_hidden_size(tmp_path):
    autos = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    zero = resolve(tmp_path, {"zero_optimization": {"stage": 3, **dict.fromkeys(autos, "auto")}})["zero_optimization"]
    assert [zero[key] for key in autos] == [100, 90, 100]


@pytest.mark.parametrize(
    ("max_live", "expected"),
    [(1000, 3 * 7 * 1000), (999, 2 * 600), (600, 2 * 600), (599, 599), (0, 0)],
)
def test_the_reuse_distance_keeps_what_may_live(tmp_path, max_live, expected):
    given = {"stage": 3, "stage3_max_live_parameters": max_live, "stage3_max_reuse_distance": "auto"}
    assert resolve(tmp_path, {"zero_optimization": given})["zero_optimization"]["stage3_max_reuse_distance"] == expected
    own = {"zero_optimization": given | {"stage3_max_reuse_distance": 5}}
    assert resolve(tmp_path, own)["zero_optimization"]["stage3_max_reuse_distance"] == 5


@pytest.mark.parametrize(
    ("ds_config", "expected"),
    [
        ({"scheduler": {"type": "WarmupLR"}}, "lr_schedule"),
        ({"activation_checkpointing": {}}, "remove it here"),
        ({"optimizer": {"type": "Lamb"}}, "AdamW"),
        ({"zero_optimization": {"stage3_max_live_parameters": "auto"}}, "must be a whole number, not 'auto'"),
        ({"zero_optimization": {"stage": 3, "leaf_module": {}}}, "leaf_module cannot be used with latent passes"),
        (
            {"zero_optimization": {"stage3_module_granularity_threshold": 9}},
            "threshold cannot be used with latent passes",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}},
            "offload_param.device is nvme, with which DeepSpeed 0.19 trains to other losses",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer takes effect only in stage 1 or 2 or 3, and stage is 0",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "offload_param takes effect only in stage 3, and stage is 2",
        ),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": True}}, "must be a JSON object, not true"),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, 'write "offload_optimizer": {"device": "cpu"}'),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4"),
        (
            {"zero_optimization": {"allgather_bucket_size": "auto"}, "communication_data_type": "auto"},
            "for zero_optimization.allgather_bucket_size, communication_data_type",
        ),
        ({"zero_optimization": {"overlap_com": True}}, "did you mean zero_optimization.overlap_comm?"),
        ({"steps_per_print": "ten"}, "steps_per_print must be a whole number, not 'ten'"),
        ({"data_types": {"grad_accum_dtype": "fp8"}}, "grad_accum_dtype must be fp32, fp16 or bf16, not 'fp8'"),
        ({"amp": {"enabled": True}}, "amp.enabled is no key that training with latent passes has been tried with"),
        ({"checkpoint": {"writer": {"type": "FAST"}}}, "checkpoint.writer.type is no key that"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_quantized_weights is no key that"),
        ({"optimizer": {"type": "AdamW", "params": {"eps": 1e-6}}}, "optimizer.params.eps has no counterpart"),
        ({"optimizer": {"type": "AdamW", "params": {"eps": "auto"}}}, "optimizer.params.eps has no counterpart"),
        ({"optimizer": {"type": "AdamW", "params": 1}}, "params must be a JSON object"),
        ({"zero_optimization": 2}, "zero_optimization must be a JSON object"),
        ({"bf16": True}, "bf16 must be a JSON object"),
        ("[]", "JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_bad_ds_configs_are_refused(tmp_path, ds_config, expected):
    message = refused(tmp_path, ds_config)
    assert expected in message and "ds.json" in message


def test_fp16_without_zero_is_refused(tmp_path):
    for ds_config in ({}, {"zero_optimization": {"stage": 0}}):
        message = refused(tmp_path, ds_config, fp16=True)
        assert "zero_optimization.stage is 0 and fp16 is true" in message and "use stage 1, or bf16" in message


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json"):
        resolve_ds_config(tmp_path / "none.json", run_config(), 1, 8)


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_ds_configs_resolve(path):
    resolved = resolve_ds_config(path, run_config(), 2, SHAPE)
    zero = resolved["zero_optimization"]
    assert path.stem == f"zero{zero['stage']}" + ("_offload" if "offload_optimizer" in zero else "")
    assert ("offload_param" in zero) == (path.stem == "zero3_offload")
    assert json.loads(path.read_text())["gradient_clipping"] == "auto"  # stated, since DeepSpeed's default is 1.0


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_deepspeed_reads_the_shipped_ds_configs_as_meant(path):
    taken = DeepSpeedConfig(resolve_ds_config(path, run_config(bf16=True, max_grad_norm=0.0), 1, SHAPE))
    assert (taken.train_micro_batch_size_per_gpu, taken.gradient_accumulation_steps) == (4, 2)
    assert (taken.gradient_clipping, taken.bfloat16_config.enabled, taken.float16_config.enabled) == (0.0, True, False)
    assert taken.zero_config.max_live_parameters == 1e9
    assert (taken.zero_config.offload_optimizer is not None) == ("offload" in path.stem)
