import signal

import pytest
from fault_runs import ROOT, Runs

from multicoco.data.aokvqa import load_examples
from multicoco.data.scenes import render_scenes
from multicoco.models.tiny import build_tiny_internvl

N_TRAIN, N_VAL = 38, 4


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Runs:
    """A data set, a tiny model and a Coconut config with a stage transition."""
    home = tmp_path_factory.mktemp("faults")
    render_scenes(home / "scenes", N_TRAIN, N_VAL, 3, kinds=("tile",))
    examples = load_examples(home / "scenes" / "aokvqa_v1p0_train.json", home / "scenes")
    texts = ["\n".join([e.question, *e.choices, *e.steps]) for e in examples]
    build_tiny_internvl(texts, home / "model", hidden_size=32, text_layers=2)
    (home / "run.yaml").write_text(f"""
mode: coconut_train
name: run
output_dir: {home}/runs
model_id: {home}/model
data_dir: {home}/scenes
train_path: aokvqa_v1p0_train.json
val_path: aokvqa_v1p0_val.json
answer_format: text
num_workers: 0
batch_size: 2
gradient_accumulation_steps: 2
eval_batch_size: 4
num_epochs: 2
lr: 1e-3
lr_schedule: linear
log_every_steps: 1
generation: {{max_new_tokens: 3}}
coconut: {{enabled: true, epochs_per_stage: 1, max_latent_stage: 1, first_stage: 0, uniform_prob: 0.3}}
deepspeed: {ROOT}/ds_configs/zero2.json
""")
    runs = Runs(home)
    yield runs
    runs.server.send_signal(signal.SIGKILL)
