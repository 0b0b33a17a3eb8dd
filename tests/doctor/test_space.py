"""The estimate against checkpoints of real runs."""

import pytest
from homes import REPO, make_home

from multicoco.config import RunConfig, load_config
from multicoco.doctor.space import checkpoint_bytes, model_size, most_checkpoints


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("space"), 4, 2, "mode: cot_train\ngeneration: {max_new_tokens: 2}\n")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "settings"), [(2, ("bf16=true", "freeze.vision_tower=true")), (3, ("batch_size=2",))]
)
def test_a_checkpoint_takes_what_was_estimated(run_server, home, stage, settings):
    settings = (f"name=zero{stage}", f"deepspeed={REPO}/ds_configs/zero{stage}.json", *settings)
    ended = run_server.run(home / "run.yaml", *settings)
    assert ended.codes == [0], ended.said
    config = load_config(home / "run.yaml", settings)
    weights = [p for p in config.run_dir.glob("checkpoints/epoch_0001/**/*") if p.suffix in (".pt", ".safetensors")]
    written = sum(path.stat().st_size for path in weights)
    # headers, counters and random states: 0.1 MB beside the 1 MB of this small model
    assert 1 <= written / checkpoint_bytes(model_size(config), stage, config.bf16) < 1.12


def test_a_model_that_is_not_here_is_unknown():
    assert model_size(RunConfig(mode="cot_train", name="run", model_id="no/model", train_path="t")) is None


def test_evaluation_writes_no_checkpoints():
    config = RunConfig(mode="eval_only", name="run", model_id="m", val_path="v", eval_config={"cot": True})
    assert most_checkpoints(config) == 0
