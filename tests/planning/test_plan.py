import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from homes import make_home
from reference import internvl, qwen2
from transformers import T5Config, XLMConfig

from multicoco.cli import main
from multicoco.config import RunConfig, load_config
from multicoco.config.schema import Lora
from multicoco.engine.ds_config import ModelShape, resolve_ds_config
from multicoco.methods import method_class
from multicoco.methods.method import Beside
from multicoco.models.backbone import load_backbone
from multicoco.models.lora import add_lora
from multicoco.models.tiny import TINY
from multicoco.planning.candidates import GIB, HEADER, HEADROOM, candidates, choose
from multicoco.planning.cost import Cluster, step_cost
from multicoco.planning.geometry import ModelGeometry, Workload
from multicoco.planning.memory import peak_memory
from multicoco.planning.plan import model_dtype
from multicoco.planning.setting import Setting, ds_config, overrides
from multicoco.registry import load

CONFIG = """
mode: coconut_train
num_epochs: 3
name: run
model_id: {model}
train_path: none.json
batch_size: 4
gradient_accumulation_steps: 3
coconut: {{enabled: true, max_latent_stage: 2}}
"""


@pytest.fixture
def run_config(tmp_path) -> Path:
    """A run config whose model is a config.json alone."""
    internvl().config.save_pretrained(tmp_path / "model")
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(model=tmp_path / "model"))
    return path


def plan(config: Path, *arguments: str) -> int:
    return main(["plan", str(config), "--gpus", "4", *arguments])


def found_for(config: RunConfig, cluster: Cluster) -> list:
    model = ModelGeometry(internvl().config, model_dtype(config), config.freeze.model_dump(), lora=config.lora)
    return candidates(config, model, [Workload(tiles=1, prompt=30, latents=2, written=8)], cluster)


@pytest.mark.parametrize("gpu_memory", [80, 0.001])
def test_what_is_chosen_is_the_fastest_that_fits(run_config, gpu_memory):
    cluster = Cluster(nodes=1, gpus=4, gpu_memory=gpu_memory)
    found = found_for(load_config(run_config), cluster)
    chosen = choose(found, cluster)
    assert chosen.memory.peak <= (1 - HEADROOM) * gpu_memory * GIB
    faster = [candidate for candidate in found if candidate.cost.seconds < chosen.cost.seconds]
    assert all(candidate.memory.peak > (1 - HEADROOM) * gpu_memory * GIB for candidate in faster)


def test_every_setting_is_reported_with_its_parts_passes_traffic_and_time(run_config, capsys):
    assert plan(run_config, "--set", "coconut.first_stage=2") == 0
    printed = capsys.readouterr().out
    header, _, *rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert [name.strip() for name in header] == HEADER
    found = found_for(load_config(run_config), Cluster(nodes=1, gpus=4, gpu_memory=80))
    settings = {(c.setting.stage, c.setting.offload, c.setting.checkpointing, c.setting.micro_batch) for c in found}
    assert len(rows) == len(settings) == 8 * 2 * 3  # stages with offload, checkpointing, micro-batches of 1, 2 and 4
    seconds = [float(row[HEADER.index("s/step")]) for row in rows]
    assert seconds == sorted(seconds)
    shown = [dict(zip(HEADER, map(str.strip, row), strict=True)) for row in rows]
    assert all(float(x["resident"]) == pytest.approx(float(x["peak"]) + float(x["CPU"]), abs=0.11) for x in shown)
    assert re.search(r"In the CPU's memory, while a checkpoint is written: [\d.]+ GiB on rank 0", printed)
    assert re.search(r"- 3 latent passes: they leave ([\d.]+, ){2}[\d.]+ MiB of activations for backward", printed)


def test_kept_features_leave_the_tower_out_of_memory_time_and_traffic(run_config, capsys):
    frozen = ("--set", "freeze.vision_tower=true", "--set", "freeze.projector=true")
    assert plan(run_config, *frozen, "--set", "features=cache", "--set", "batch_size=1") == 0
    assert "the vision tower is not called" in capsys.readouterr().out
    config, work = internvl().config, Workload(tiles=2, prompt=30, latents=2, written=8)
    settings = Setting(3, "none", False, 2, 1, 8, 0, 10**9)
    kept_parts = [(), ("vision_tower", "projector"), ("vision_tower",)]
    sides = [ModelGeometry(config, torch.bfloat16, {}, kept_parts=parts) for parts in kept_parts]
    costs = [step_cost(model, work, settings, Cluster(2, 4, 80)) for model in sides]
    memories = [peak_memory(model, work, settings) for model in sides]
    assert costs[1].compute < costs[0].compute and costs[1].inter_bytes < costs[2].inter_bytes < costs[0].inter_bytes
    assert memories[1].parts["vision"] == 0 < memories[2].parts["vision"] < memories[0].parts["vision"]
    assert memories[1].parts["parameters"] < memories[2].parts["parameters"] < memories[0].parts["parameters"]
    assert sides[1].kept_bytes == 2 * config.image_seq_length * config.get_text_config().hidden_size
    assert sides[2].kept_bytes == 2 * config.image_seq_length * 4 * config.vision_config.hidden_size


@pytest.mark.parametrize(
    "name", [name for name in TINY if TINY[name].sees_images and load("families", name).keeps_features]
)
def test_what_is_kept_of_a_tile_is_known_of_every_family(name, tmp_path):
    TINY[name](["red"], tmp_path / "model", 0, hidden_size=32, text_layers=1)
    backbone = load_backbone(str(tmp_path / "model"))
    family, model = backbone.family, backbone.model
    for kept_parts in (("vision_tower",), ("vision_tower", "projector")):
        projected = "projector" in kept_parts
        kept = family.kept(model, family.blank_tiles(1, torch.zeros(())), projected)
        geometry = ModelGeometry(model.config, torch.float32, {}, kept_parts=kept_parts)
        assert geometry.kept_bytes == sum(tensor.nbytes for tensor in kept.values()) > 0
        assert projected or geometry.trace.projector(2).saved > 0


def test_zero3_may_keep_the_language_model_or_all_gathered(monkeypatch):
    model = ModelGeometry(internvl().config, torch.float32, {})
    monkeypatch.setattr("multicoco.planning.setting._MAX_LIVE", model.decoder_parameters // 2)
    config = RunConfig(mode="cot_train", name="live", model_id="none", train_path="none.json", batch_size=1)
    cluster = Cluster(nodes=2, gpus=4, gpu_memory=80)
    found = candidates(config, model, [Workload(tiles=1, prompt=30, latents=4, written=8)], cluster)
    plain = [c for c in found if c.setting.stage == 3 and c.setting.offload == "none" and not c.setting.checkpointing]
    few, decoder, everything = sorted(plain, key=lambda c: c.setting.max_live)
    assert decoder.setting.max_live == model.decoder_parameters and everything.setting.max_live == model.parameters
    assert few.cost.intra_bytes > decoder.cost.intra_bytes > everything.cost.intra_bytes
    assert few.memory.peak < decoder.memory.peak < everything.memory.peak


def test_every_candidate_keeps_the_global_batch_and_is_a_valid_ds_config(run_config, tmp_path):
    config, shape = load_config(run_config), ModelShape(32, 10**6, 10**6, 3)
    settings = [candidate.setting for candidate in found_for(config, Cluster(nodes=1, gpus=4, gpu_memory=80))]
    assert {setting.stage for setting in settings} == {0, 1, 2, 3}
    assert {setting.offload for setting in settings} == {"none", "optimizer", "all"}
    assert {setting.micro_batch for setting in settings} == {1, 2, 4}
    for setting in settings:
        path = tmp_path / "ds_config.json"
        path.write_text(json.dumps(ds_config(setting)))
        trained = config.model_copy(update=overrides(setting))
        resolved = resolve_ds_config(path, trained, 4, shape)
        assert resolved["train_batch_size"] == 4 * 3 * 4
        assert resolved["zero_optimization"]["stage"] == setting.stage


def test_the_written_ds_config_is_accepted_with_the_printed_options(run_config, tmp_path, capsys):
    path = tmp_path / "chosen.json"
    assert plan(run_config, "--nodes", "2", "--write", str(path)) == 0
    printed = capsys.readouterr().out
    options = printed.split(f"--deepspeed_config {path} ")[1].split()
    assert options[::2] == ["--set"] * 3
    config = load_config(run_config, options[1::2])
    resolved = resolve_ds_config(path, config, 8, ModelShape(32, 10**6, 10**6, 3))
    assert resolved["train_batch_size"] == 4 * 3 * 8
    notes = path.with_suffix(".md").read_text()
    assert notes.strip() in printed and f"`zero_optimization.stage` {resolved['zero_optimization']['stage']}" in notes


def test_lengths_are_those_of_the_options_or_of_the_data(run_config, tmp_path, capsys):
    assert plan(run_config) == 0
    assert "lengths assumed: data or tokenizer are not at hand" in capsys.readouterr().out
    assert plan(run_config, "--image-tiles", "2", "--prompt-tokens", "7", "--step-tokens", "5") == 0
    # 2 x 4 + 7 and the token that begins the thoughts; the one that ends them and 2 x 5 + 16
    assert "16 columns with 2 image tiles, 0 latent, 27 written" in capsys.readouterr().out
    home = make_home(tmp_path / "home", 8, 2, "mode: cot_train\n")
    assert plan(home / "run.yaml") == 0
    assert "lengths measured on the first 8 records of aokvqa_v1p0_train.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gpu-memory", "0.0001"], "nothing fits 4 GPUs of 0.0001 GiB"),
        (["--set", "model_id={tmp}"], "model_id '{tmp}'"),
        (["--set", "model_id={tmp}/t5"], "a t5 model is of no family that is supported"),
        (["--set", "model_id={tmp}/xlm"], "a xlm model cannot be planned for"),
        (["--set", "mode=eval_only", "--set", "val_path=x", "--set", "eval_config.cot=true"], "mode is eval_only"),
        (["--write", "{tmp}/there.json"], "{tmp}/there.json exists"),
        (["--write", "{tmp}/noted.json"], "{tmp}/noted.md exists"),
        (["--write", "{tmp}/new.md"], "give a .json"),
        (["--write", "{tmp}/no/folder.json"], "there is no folder {tmp}/no"),
    ],
)
def test_mistakes_get_one_message_and_write_nothing(run_config, tmp_path, capsys, arguments, expected):
    T5Config().save_pretrained(tmp_path / "t5")
    XLMConfig(n_layers=2).save_pretrained(tmp_path / "xlm")
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "noted.md").write_text("mine")
    before = sorted(tmp_path.iterdir())
    assert plan(run_config, *(argument.format(tmp=tmp_path) for argument in arguments)) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and expected.format(tmp=tmp_path) in message
    assert sorted(tmp_path.iterdir()) == before
    assert {(tmp_path / name).read_text() for name in ("there.json", "noted.md")} == {"mine"}


@pytest.mark.parametrize("value", ["0", "-1", "x", "inf", "nan"])
def test_figures_of_the_cluster_must_be_above_zero(run_config, value):
    with pytest.raises(SystemExit) as stopped:
        plan(run_config, "--gpu-memory", value)
    assert stopped.value.code == 2


@pytest.mark.parametrize("build", [qwen2, internvl])  # of which the second one's head is its embeddings
def test_adapters_are_counted_as_peft_adds_them(build):
    model, lora = build(), Lora(rank=4, target_modules=["q_proj", "down_proj"])
    planned = ModelGeometry(model.config, torch.float32, {}, lora=lora)
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    add_lora(model, **lora.model_dump(), new_tokens=range(3))
    assert planned.parameters == sum(p.numel() for p in model.parameters())
    assert planned.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    layer = model.get_decoder().layers[0]
    assert planned.decoder_layer.trainable == sum(p.numel() for p in layer.parameters() if p.requires_grad)
    assert planned.decoder_layer.largest == max(p.numel() for p in layer.parameters() if p.requires_grad)
    assert planned.is_tied == tied


def test_adapters_have_no_states_but_their_own(run_config):
    plain, adapted = (
        choose(found_for(load_config(run_config, [f"lora.rank={rank}"]), cluster), cluster).memory.parts
        for rank in ("null", "2")
        for cluster in [Cluster(nodes=1, gpus=1, gpu_memory=80)]
    )
    assert adapted["optimizer"] < 0.9 * plain["optimizer"]
    assert adapted["parameters"] > plain["parameters"]


def reading(sim_cot: dict | None, lora: int | None = None) -> ModelGeometry:
    """An InternVL whose thoughts a decoder reads, or nothing does."""
    keys = {"name": "x", "model_id": "m", "mode": "train", "train_path": "t", "num_epochs": 3, "lora": {"rank": lora}}
    own = {"method": "coconut"} if sim_cot is None else {"method": "sim_cot", "sim_cot": sim_cot}
    config = RunConfig(**keys, **own, coconut={"enabled": True})
    method = method_class(config.trained_method)(config)
    return ModelGeometry(internvl().config, torch.float32, {}, method.objective, lora=config.lora)


def test_a_decoder_that_reads_thoughts_is_counted():
    model = internvl()
    read = sum(p.numel() for part in (model.get_decoder(), model.lm_head) for p in part.parameters())
    read -= model.lm_head.weight.numel()  # tied
    linear = [layer for layer in model.get_decoder().modules() if isinstance(layer, torch.nn.Linear)]
    adapters = sum(3 * (layer.in_features + layer.out_features) for layer in linear)
    left_out = sum(p.numel() for layer in model.get_decoder().layers[1:] for p in layer.parameters())
    own = {"decoder": "adapters", "decoder_rank": 3}
    cases = {  # numbers that it has, and that are trained
        None: ({"decoder": "copy"}, read, read),
        "frozen": ({"freeze_decoder": True}, read, 0),
        "smaller": ({"decoder_layers": 1}, read - left_out, read - left_out),
        "itself": ({"decoder": "self"}, 0, 0),
        "adapters": (own, adapters, adapters),
    }
    for lora in (None, 2):
        alone = reading(None, lora)
        for keys, parameters, trained in cases.values():
            geometry = reading(keys, lora)
            assert geometry.parameters == geometry.called_parameters == alone.parameters + parameters
            assert geometry.trainable == alone.trainable + trained
            assert geometry.saved_parameters == alone.saved_parameters == alone.parameters
            assert alone.reader is None and geometry.reader.layer.copies == keys.get("decoder_layers", 3)
            assert geometry.reader.shares == (
                keys.get("decoder") in ("self", "adapters") and not (lora and keys == own)
            )


def test_what_a_decoder_runs_takes_memory_and_time():
    work, beside, cluster = Workload(tiles=1, prompt=30, latents=2, written=8), Beside(2, 1, 12), Cluster(1, 2, 80)
    itself, copy = reading({"decoder": "self"}), reading({})
    rows, columns = 2 * 2 + 1, 13
    for stage in (0, 2, 3):
        setting, more = Setting(stage, "none", False, 2, 1, 2, 1000, 10**9), dataclasses.replace(work, beside=beside)
        without, own, other = (peak_memory(*of, setting) for of in ((itself, work), (itself, more), (copy, more)))
        for part in ("KV cache", "activations"):
            assert without.parts[part] < own.parts[part] == other.parts[part]
        assert own.parts["KV cache"] - without.parts["KV cache"] == rows * columns * copy.cache_numbers * 2 * 8
        assert without.peak < own.peak < other.peak
        seconds = [step_cost(*of, setting, cluster).compute for of in ((itself, work), (itself, more), (copy, more))]
        assert seconds[0] < seconds[1] == seconds[2]
