import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from engine.published_ds_configs import PUBLISHED

from multicoco.config import RunConfig
from multicoco.engine.ds_config import ModelShape, resolve_ds_config
from multicoco.engine.ds_keys import REPORTS, TRIED, leaves
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


@pytest.mark.parametrize(
    ("type_", "params"),
    [
        ("AdamW", {}),
        ("AdamW", dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")),
        ("AdamW", {"lr": 3e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "max_grad_norm": 0.7}),
        ("adamw", {"torch_adam": True, "adam_w_mode": True, "bias_correction": True, "amsgrad": False}),
        ("Adam", {"adam_w_mode": True, "lr": "auto"}),
        ("Adam", {}),  # which DeepSpeed takes for AdamW
    ],
)
def test_an_agreeing_optimizer_section_is_checked_and_left_to_the_engine(tmp_path, type_, params):
    assert resolve(tmp_path, {"optimizer": {"type": type_, "params": params}}) == resolve(tmp_path, {})


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_an_agreeing_scheduler_section_is_checked_and_left_to_the_engine(tmp_path, schedule):
    names = {"constant": "WarmupLR", "linear": "WarmupDecayLR", "cosine": "WarmupCosineLR"}
    auto = dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps"), "auto")
    said = {"warmup_min_lr": 0, "warmup_max_lr": 3e-4, "warmup_num_steps": 100, "warmup_type": "linear"}
    fields = {"lr_schedule": schedule, "warmup_steps": 100}
    for params in (auto, said, {}):
        section = {"scheduler": {"type": names[schedule], "params": params}}
        assert resolve(tmp_path, section, **fields) == resolve(tmp_path, {}, **fields)


@pytest.mark.parametrize(
    "changes_nothing",
    [
        {"fp16": {"auto_cast": False}},
        {"fp16": {"auto_cast": True}, "bf16": {"auto_cast": True}},  # as the model does by itself
        {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False},
        {"prescale_gradients": False, "gradient_predivide_factor": 1.0, "sparse_gradients": False},
        {"disable_allgather": False, "communication_data_type": None, "data_types": {"grad_accum_dtype": None}},
        {"amp": {"enabled": False, "opt_level": "O1"}, "hybrid_engine": {"enabled": False, "max_out_tokens": 9}},
        {"curriculum_learning": {"enabled": False}, "flops_profiler": {"enabled": False, "profile_step": 1}},
        {"aio": {"block_size": 262144, "queue_depth": 32}, "checkpoint": {"tag_validation": "Warn"}},
        {"zero_optimization": {"stage": 0, "cpu_offload": False, "offload_optimizer": None, "sub_group_size": "auto"}},
        {"zero_optimization": {"zero_quantized_weights": False, "ignore_unused_parameters": True}},
        {"zero_optimization": False, "optimizer": None, "scheduler": {}, "activation_checkpointing": {}},
        {"activation_checkpointing": {"partition_activations": True, "number_checkpoints": 4, "profile": False}},
    ],
    ids=json.dumps,
)
def test_what_changes_nothing_is_taken_and_not_passed_on(tmp_path, changes_nothing):
    assert resolve(tmp_path, changes_nothing) == resolve(tmp_path, {})


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"stage": 2, "cpu_offload": True}, {"stage": 2, "offload_optimizer": {"device": "cpu"}}),
        ({"stage": 3, "cpu_offload_param": True}, {"stage": 3, "offload_param": {"device": "cpu"}}),
        ({"max_live_parameters": 7}, {"stage3_max_live_parameters": 7}),
        ({"gather_16bit_weights_on_model_save": True}, {"stage3_gather_16bit_weights_on_model_save": True}),
        ({"stage3_gather_fp16_weights_on_model_save": True}, {"stage3_gather_16bit_weights_on_model_save": True}),
        (True, {"stage": 1}),
    ],
    ids=json.dumps,
)
def test_older_names_mean_what_they_mean_to_deepspeed(tmp_path, older, newer):
    assert resolve(tmp_path, {"zero_optimization": older}) == resolve(tmp_path, {"zero_optimization": newer})
    assert resolve(tmp_path, {"bfloat16": {"enabled": True}}, bf16=True)["bf16"] == {"enabled": True}


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
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type is "Lamb", but the optimizer of every run is "AdamW"'),
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
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage is true"),
        ({"communication_data_type": "auto"}, 'communication_data_type is "auto", for which the run config has no'),
        ({"zero_optimization": {"overlap_com": True}}, "did you mean zero_optimization.overlap_comm?"),
        ({"steps_per_print": "ten"}, "steps_per_print must be a whole number, 1 or more, not 'ten'"),
        ({"steps_per_print": 0}, "steps_per_print must be a whole number, 1 or more, not 0"),
        ({"steps_per_print": 1.5}, "steps_per_print must be a whole number, 1 or more, not 1.5"),
        ({"steps_per_print": True}, "steps_per_print must be a whole number, 1 or more, not True"),
        ({"gradient_accumulation_steps": True}, "gradient_accumulation_steps is true"),
        (
            {"zero_optimization": {"reduce_bucket_size": 1.5}},
            "zero_optimization.reduce_bucket_size: must be a valid int",
        ),
        ({"zero_optimization": {"reduce_bucket_size": "1e9"}}, "unable to parse string as an integer (got '1e9')"),
        (
            {"zero_optimization": {"sub_group_size": True}},
            "zero_optimization.sub_group_size must be a number, not true",
        ),
        ({"zero_optimization": {"overlap_comm": "perhaps"}}, "zero_optimization.overlap_comm: must be a valid boolean"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}},
            "offload_optimizer.device: must be",
        ),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"ratio": 0.5}}}, "only supported for ZeRO Stage 3"),
        ('{"zero_optimization": {"sub_group_size": NaN}}', "sub_group_size is nan: give a number"),
        ('{"gradient_clipping": Infinity}', "gradient_clipping is inf: give a number"),
        ({"zero_optimization.stage": 3}, "zero_optimization.stage is one name with a dot in it"),
        (
            {"zero_optimization": {"max_live_parameters": 1, "stage3_max_live_parameters": 1}},
            "max_live_parameters is another name for zero_optimization.stage3_max_live_parameters, and both are there",
        ),
        ({"bf16": {}, "bfloat16": {}}, "bfloat16 is another name for bf16"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last is true, and only DeepSpeed's default, false, has been"),
        ({"data_types": {"grad_accum_dtype": "fp8"}}, "grad_accum_dtype must be fp32, fp16 or bf16, not 'fp8'"),
        ({"amp": {"enabled": True}}, "amp.enabled is no key that training with latent passes has been tried with"),
        ({"checkpoint": {"writer": {"type": "FAST"}}}, "checkpoint.writer.type is no key that"),
        (
            {"zero_optimization": {"zero_quantized_weights": True}},
            "zero_quantized_weights is true, and only DeepSpeed's",
        ),
        (
            {"optimizer": {"params": {"eps": 1e-6}}},
            "optimizer.params.eps is 1e-06, but that of every run's AdamW is 1e-08",
        ),
        (
            {"optimizer": {"params": {"lr": "3e-4"}}},
            'optimizer.params.lr is "3e-4", but lr in the run config is 0.0003',
        ),
        (
            {"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}},
            "optimizer.params.adam_w_mode is false, but",
        ),
        ({"optimizer": {"params": {"amsgrad": True}}}, "optimizer.params.amsgrad is true, but"),
        ({"optimizer": {"params": {"freeze_step": 9}}}, "optimizer.params.freeze_step has no counterpart"),
        ({"optimizer": {"type": "AdamW", "params": 1}}, "params must be a JSON object"),
        (
            {"scheduler": {"type": "WarmupDecayLR"}},
            'scheduler.type is "WarmupDecayLR", but DeepSpeed\'s name for lr_schedule constant is "WarmupLR"',
        ),
        ({"scheduler": {"params": {"warmup_num_steps": 500}}}, "warmup_num_steps is 500, but warmup_steps in the run"),
        (
            {"scheduler": {"params": {"warmup_type": "log"}}},
            'warmup_type is "log", but the form of every warm-up is "lin',
        ),
        (
            {"scheduler": {"params": {"total_num_steps": 9}}},
            "total_num_steps is 9, but the length that data and stages",
        ),
        (
            {"activation_checkpointing": {"cpu_checkpointing": True}},
            "cpu_checkpointing is true, but that of activation_c",
        ),
        ({"zero_optimization": 2}, "zero_optimization must be a JSON object"),
        ({"bf16": True}, "bf16 must be a JSON object"),
        ("[]", "JSON object"),
        ("{", "cannot be read"),
        ("", "cannot be read"),
        ('{"steps_per_print": 1 "fp16": {}}', "cannot be read: Expecting ',' delimiter"),
    ],
)
def test_bad_ds_configs_are_refused(tmp_path, ds_config, expected):
    message = refused(tmp_path, ds_config)
    assert expected in message and "ds.json" in message


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path):
    wrong = {
        "train_batch_size": 7,
        "fp16": [],
        "optimizer": {"type": "AdamW", "params": {"lr": 1, "eps": 1}},
        "scheduler": {"type": "OneCycle"},
        "zero_optimization": {"stage": 1, "reduce_bucket_size": "big", "offload_param": {"device": "cpu"}},
        "overlap_comm": True,
        "communication_data_type": "fp8",
    }
    first, *lines = refused(tmp_path, wrong).splitlines()
    assert first.endswith("ds.json:")
    said = (
        "fp16",
        "offload_param takes",
        "train_batch_size",
        "params.lr",
        "params.eps",
        "scheduler.type",
        "overlap_comm",
    )
    said = (*said, "communication_data_type", "reduce_bucket_size")
    assert [name in line for name, line in zip(said, lines, strict=True)] == [True] * len(said)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"zero_optimization": {"stage": 3}, "bf16": {}, "zero_optimization": {"stage": 1}}', "zero_optimization"),
        ('{"zero_optimization": {"offload_param": {"device": "cpu", "device": "none"}}}', "offload_param.device"),
        ("bf16: {\n  enabled: auto\n  enabled: true\n}", "bf16.enabled"),
    ],
)
def test_a_key_that_stands_twice_is_named(tmp_path, text, named):
    message = refused(tmp_path, text)
    assert named in message and "stands twice" in message


WHOLE_NUMBERS = {
    "zero_optimization": {
        "stage": 3.0,
        "reduce_bucket_size": 5e8,
        "allgather_bucket_size": 2e8,
        "sub_group_size": 1e14,
        "stage3_prefetch_bucket_size": 0.94e6,
        "stage3_param_persistence_threshold": 1e4,
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "zero_hpz_partition_size": 1e0,
        "offload_param": {"device": "cpu", "buffer_count": 5e0, "buffer_size": 1e8, "max_in_cpu": 1e9},
    },
    "fp16": {"initial_scale_power": 1.6e1, "loss_scale_window": 1e3, "hysteresis": 2.0, "min_loss_scale": 1e0},
    "steps_per_print": 2e3,
    "flops_profiler": {"enabled": True, "profile_step": 1e1, "module_depth": -1e0},
}


def test_whole_numbers_are_taken_however_they_are_written(tmp_path):
    assert all(isinstance(value, float | str | bool) for _, value in leaves(WHOLE_NUMBERS))
    resolved = dict(leaves(resolve(tmp_path, WHOLE_NUMBERS)))
    for key, value in leaves(WHOLE_NUMBERS):
        assert resolved[key] == value and not isinstance(resolved[key], float), key


def test_files_are_taken_as_editors_and_deepspeed_write_them(tmp_path):
    plain = '{"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}'
    commented = """// tuned by hand
    {
        "zero_optimization": {"stage": 2},  # sharded gradients
        /* both
           of these */
        "bf16": {enabled: "auto"},
    }"""
    expected = resolve(tmp_path, plain)
    assert resolve(tmp_path, commented) == expected
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        (tmp_path / "other.json").write_bytes(plain.encode(encoding))
        assert resolve_ds_config(tmp_path / "other.json", run_config(), 3, SHAPE) == expected


def test_a_folder_is_no_ds_config(tmp_path):
    with pytest.raises(UserError, match="is a folder: name the JSON file in it"):
        resolve_ds_config(tmp_path, run_config(), 1, SHAPE)


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


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ds_configs_are_taken_and_read_by_deepspeed_as_meant(tmp_path, name):
    content, fields = PUBLISHED[name]
    resolved = resolve(tmp_path, content, **fields)
    passed_on = {key for key, _ in leaves(resolved)}
    told = {*OWNED, "bf16.enabled", "fp16.enabled"}
    reports = {key for key in passed_on if key.partition(".")[0] in REPORTS}
    assert passed_on - told - reports <= TRIED
    taken = DeepSpeedConfig(
        resolve(tmp_path, content | {"train_batch_size": "auto"}, **fields) | {"train_batch_size": 8}
    )
    assert taken.zero_config.stage == content["zero_optimization"]["stage"]
    assert taken.bfloat16_config.enabled == fields.get("bf16", False)
    wanted = content["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
    assert (taken.zero_config.offload_optimizer or SimpleNamespace(device="none")).device == (
        "cpu" if content["zero_optimization"].get("cpu_offload") else wanted
    )
