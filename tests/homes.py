"""Folders for tests: one to train in, with a data set, a tiny model and a run config; and sealed ones."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from multicoco.config import load_config
from multicoco.data.sources import load_examples
from multicoco.engine.manifest import describe, seal
from multicoco.engine.trainer_state import TrainerState
from multicoco.models.backbone import load_backbone
from multicoco.models.tiny import TINY
from multicoco.models.vocabulary import add_latent_tokens
from multicoco.tasks.scenes import render_scenes

REPO = Path(__file__).resolve().parents[1]


def make_home(home: Path, n_train: int, n_val: int, config: str, family: str = "internvl") -> Path:
    """Writes scenes/, model/ and run.yaml, whose keys are those below and the given ones; returns home."""
    render_scenes(home / "scenes", n_train, n_val, 3, kinds=("tile",))
    examples = load_examples(home / "scenes" / "aokvqa_v1p0_train.json", home / "scenes")
    texts = ["\n".join([e.question, *e.choices, *e.steps]) for e in examples]
    TINY[family](texts, home / "model", hidden_size=32, text_layers=2)
    (home / "run.yaml").write_text(f"""
name: run
output_dir: {home}/runs
model_id: {home}/model
data_dir: {home}/scenes
train_path: aokvqa_v1p0_train.json
val_path: aokvqa_v1p0_val.json
answer_format: text
num_workers: 0
eval_batch_size: 4
lr: 1e-3
log_every_steps: 1
report: false
deepspeed: {REPO}/ds_configs/zero2.json
{config}""")
    return home


def make_trained_home(home: Path, family: str = "internvl") -> Path:
    """One with a run folder, runs/run, that holds a checkpoint of Coconut's stage 2 of an untrained model."""
    make_home(home, 12, 6, "mode: cot_train\ngeneration: {max_new_tokens: 12}", family)
    checkpoint = home / "runs" / "run" / "checkpoints" / "epoch_0003"
    torch.manual_seed(0)
    backbone = load_backbone(str(home / "model"))
    add_latent_tokens(backbone, None)
    backbone.save_pretrained(checkpoint / "model")
    settings = ["mode=coconut_train", "coconut={enabled: true, c_thought: 2, max_latent_stage: 3}", "num_epochs=4"]
    (checkpoint / "config.yaml").write_text(load_config(home / "run.yaml", settings).to_yaml())
    state = TrainerState(3, stage=2, step=9, method="coconut", prompt_date="2026-11-25")
    (checkpoint / "trainer.json").write_text(json.dumps(asdict(state)))
    seal_whole(checkpoint)
    return home


def seal_whole(folder: Path) -> None:
    """As if this process had written every file in it."""
    seal(folder, describe(folder, [path for path in folder.rglob("*") if path.is_file()]))


def make_run(run: Path, accuracies: Sequence[float | None], stages: Sequence[int] | None = None) -> Path:
    """A run folder whose epochs ended with these accuracies."""
    for epoch, accuracy in enumerate(accuracies, start=1):
        folder = run / "checkpoints" / f"epoch_{epoch:04d}"
        folder.mkdir(parents=True)
        stage = stages[epoch - 1] if stages else 0
        state = TrainerState(epoch, stage, step=epoch, accuracy=accuracy, method="coconut")
        (folder / "trainer.json").write_text(json.dumps(asdict(state)))
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_bytes(bytes([epoch]) * 1000)
        seal_whole(folder)
    (run / "checkpoints" / "latest").write_text(f"epoch_{len(accuracies):04d}")
    return run


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
