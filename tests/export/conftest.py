"""Runs with one checkpoint of random weights, as training would have left it."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from homes import REPO, seal_whole

from multicoco.config import load_config
from multicoco.engine.assembly import assemble
from multicoco.engine.thought_weights import save_thoughts
from multicoco.engine.trainer_state import TrainerState
from multicoco.engine.weights import Weights
from multicoco.files import write_json
from multicoco.models.tiny import TINY

COCONUT = "coconut={enabled: true, c_thought: 2, max_latent_stage: 3}"


@pytest.fixture(scope="session")
def make_run(tmp_path_factory) -> Callable[..., Path]:
    """Writes a run folder with a checkpoint of stage 2, after 9 steps, and returns it."""

    def make(family: str, *settings: str) -> Path:
        home = tmp_path_factory.mktemp(family)
        TINY[family](["Which of the tiles is red, and which blue?"] * 5, home / "model", hidden_size=32, text_layers=2)
        (home / "run.yaml").write_text(f"""
            {{mode: coconut_train, name: run, output_dir: {home}/runs, model_id: {home}/model, self_check: false,
            num_epochs: 4, train_path: train.json, val_path: val.json, answer_format: text,
            generation: {{max_new_tokens: 8}}, seed: 7, deepspeed: {REPO}/ds_configs/zero2.json}}""")
        config = load_config(home / "run.yaml", [COCONUT, *settings])
        assembly = assemble(config, Weights(config.model_id, ""), "2026-11-25", [], torch.device("cpu"))
        torch.manual_seed(31)
        for parameter in assembly.reasoner.parameters():
            if parameter.requires_grad:  # so that it is no longer what it was at the start
                parameter.data += 0.1 * torch.randn_like(parameter)
        run = config.run_dir
        checkpoint = run / "checkpoints" / "epoch_0003"
        source = assembly.reasoner.thought_source
        assembly.backbone.save_pretrained(checkpoint / "model")
        assembly.backbone.save_adapters(checkpoint / "adapter", assembly.backbone.model.state_dict())
        save_thoughts(checkpoint / "model", source.state_dict() if isinstance(source, torch.nn.Module) else {})
        (checkpoint / "config.yaml").write_text(config.to_yaml())
        told = {"method": config.trained_method, "prompt_date": "2026-11-25", "data": {"train_path": "ab" * 32}}
        write_json(checkpoint / "trainer.json", asdict(TrainerState(3, stage=2, step=9, **told)))
        seal_whole(checkpoint)
        scores = {"accuracy": 0.5, "n": 6, "chance": 0.25, "aokvqa/multiple_choice": 0.5, "aokvqa/multiple_choice_n": 6}
        lines = [
            {"step": step, "time": 1.0, **{f"eval/{mode}/{key}": value for key, value in (scores | own).items()}}
            for step, mode, own in (
                (6, "coconut", {"accuracy": 0.1}),
                (9, "coconut", {}),
                (9, "coconut.zero", {"accuracy": 0.0, "chance": None}),
            )
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run

    return make
