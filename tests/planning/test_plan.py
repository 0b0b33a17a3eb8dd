import re
from pathlib import Path

import pytest
import torch
from homes import make_home
from planned import found_for
from reference import internvl, llava
from transformers import T5Config, XLMConfig

from multicoco.cli import main
from multicoco.config import load_config
from multicoco.engine.ds_config import ModelShape, resolve_ds_config
from multicoco.planning.candidates import HEADER
from multicoco.planning.cost import Cluster, step_cost
from multicoco.planning.geometry import Workload, geometry_of
from multicoco.planning.memory import peak_memory
from multicoco.planning.setting import Setting

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
    assert re.search(r"- 3 latent passes: they leave ([\d.]+, ){2}[\d.]+ MiB of activations for backward", printed)


def test_kept_features_leave_the_tower_out_of_memory_time_and_traffic(run_config, capsys):
    frozen = ("--set", "freeze.vision_tower=true", "--set", "freeze.projector=true")
    assert plan(run_config, *frozen, "--set", "features=cache", "--set", "batch_size=1") == 0
    printed = capsys.readouterr().out
    assert "the vision tower is not called" in printed
    assert re.search(r"A rank reads \d+ MiB a step: below [\d.]+ GB/s for each, and [\d.]+ GB/s for a node", printed)
    config, work = internvl().config, Workload(tiles=2, prompt=30, latents=2, written=8)
    settings = Setting(3, "none", False, 2, 1, 8, 0, 10**9)
    kept_parts = [(), ("vision_tower", "projector"), ("vision_tower",)]
    sides = [geometry_of(config, torch.bfloat16, {}, kept_parts=parts) for parts in kept_parts]
    costs = [step_cost(model, work, settings, Cluster(2, 4, 80)) for model in sides]
    memories = [peak_memory(model, work, settings) for model in sides]
    assert costs[1].compute < costs[0].compute and costs[1].inter_bytes < costs[2].inter_bytes < costs[0].inter_bytes
    assert memories[1].parts["vision"] == 0 < memories[2].parts["vision"] < memories[0].parts["vision"]
    assert memories[1].parts["parameters"] < memories[2].parts["parameters"] < memories[0].parts["parameters"]
    assert sides[1].kept_bytes == 2 * config.image_seq_length * config.get_text_config().hidden_size
    assert sides[2].kept_bytes == 2 * config.image_seq_length * 4 * config.vision_config.hidden_size


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
    printed = capsys.readouterr().out
    assert "lengths measured on the first 8 records of aokvqa_v1p0_train.json" in printed
    assert "- 8 records, held by each rank: 0.0 MiB" in printed
    assert re.search(r"- Padding in batches of \d+, of the lengths of 8 records: \d+% shuffled, \d+% with", printed)


def test_a_model_of_no_family_is_planned_for_and_it_is_said_what_is_not_known(run_config, tmp_path, capsys):
    llava().config.save_pretrained(tmp_path / "llava")
    one = ("--set", "batch_size=1", "--set", "gradient_accumulation_steps=1")
    assert plan(run_config, *one, "--set", f"model_id={tmp_path}/llava", "--prompt-tokens", "7") == 0
    printed = capsys.readouterr().out
    assert "12 columns with 1 image tiles" in printed  # 4 tokens, 7 and the one that begins the thoughts
    assert "into how many pictures an image of a llava model is cut, its processor alone knows" in printed


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
