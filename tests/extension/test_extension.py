"""A method, a family and a source of another package (toys.py) train and are evaluated, found by entry points."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import Ended, RunServer, losses
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

from multicoco.models.tiny import build_tokenizer

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
ENTRY_POINTS = """
[multicoco.methods]
doubling = toys:Doubling
[multicoco.families]
backwards = toys:Backwards
[multicoco.sources]
sums = toys:Sums
"""
CONFIG = """
mode: train
method: doubling
name: run
model_id: model
train_path: sums.json
val_path: sums.json
num_epochs: 1
batch_size: 4
eval_batch_size: 8
log_every_steps: 1
report: false
num_workers: 0
kernel: reference
self_check: false
deepspeed: ds.json
generation: {max_new_tokens: 2}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with the package as if it were installed, a tiny model, eight records and a config."""
    home = tmp_path_factory.mktemp("extension")
    shutil.copy(Path(__file__).with_name("toys.py"), home)
    (home / "toys-1.0.dist-info").mkdir()
    (home / "toys-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (home / "toys-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    (home / "sums.json").write_text(json.dumps([{"sum": [i, 2 * i]} for i in range(8)]))
    (home / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    (home / "run.yaml").write_text(CONFIG)
    set_seed(0)
    tokenizer = build_tokenizer(["Add 1 to 2. Answer: 3\n"] * 9, 320)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
    }
    words = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **words))
    for part in (model, tokenizer):
        part.save_pretrained(home / "model")
    return home


@pytest.fixture(scope="module")
def train(home) -> Iterator[Callable[..., Ended]]:
    """Does a run in a process that has found the package as it was started, and looks again what it brings."""
    server = RunServer(home, PYTHONPATH=str(home))
    again = "from multicoco import registry; registry._entries.cache_clear()"
    yield lambda *settings: server.run(home / "run.yaml", *settings, patch=again)
    server.stop()


def test_they_train_for_two_steps_and_are_evaluated(home, train):
    environment = os.environ | {"PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), "run.yaml"]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(home / "runs" / "run")) == 2
    samples = [json.loads(line) for line in (home / "runs/run/samples/epoch_0001_doubling.jsonl").open()]
    assert [sample["gold"] for sample in samples] == [str(3 * i) for i in range(8)]
    assert {sample["latent_passes"] for sample in samples} == {2}
    # each has a say: without the factor, and without the family's positions, the first loss is another
    again = train("name=undoubled", "doubling.factor=1", "val_path=null")
    assert again.codes == [0], again.said
    assert losses(home / "runs" / "undoubled")[0] == pytest.approx(losses(home / "runs" / "run")[0] / 2)
    (home / "toys-1.0.dist-info" / "entry_points.txt").write_text(
        ENTRY_POINTS.replace("backwards = toys:Backwards", "")
    )
    forwards = train("name=forwards", "doubling.factor=1", "val_path=null")
    (home / "toys-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    assert forwards.codes == [0], forwards.said
    assert losses(home / "runs" / "forwards")[0] != pytest.approx(losses(home / "runs" / "undoubled")[0], rel=1e-4)


def test_their_keys_are_checked_as_the_built_in_ones_are(train):
    done = train("doubling.factor=13")
    assert done.codes == [1] and "doubling.factor is 13: take a luckier one" in done.said[0]
    done = train("doubling.facto=3")
    assert done.codes == [1] and "did you mean doubling.factor?" in done.said[0]
