"""What must be the same when a run goes on, and what need not."""

import pytest
import yaml

from multicoco.config import RunConfig
from multicoco.engine.resume import check_unchanged
from multicoco.engine.trainer_state import TrainerState
from multicoco.errors import UserError

KEYS = {"mode": "cot_train", "name": "run", "model_id": "m", "train_path": "t.json", "data_dir": "/scratch/1"}
DATA = {"train_path": "hash"}


@pytest.fixture
def check(tmp_path):
    def run(old: dict, new: dict, data: dict = DATA, allowed: tuple[str, ...] = ()) -> list[str]:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
        state = TrainerState(1, 0, 1, global_batch=8, data=DATA)
        return check_unchanged(tmp_path, state, RunConfig(**new), data, 8, allowed)

    return run


def test_a_key_that_is_newer_than_the_checkpoint_counts_as_its_default(check):
    assert check(KEYS, KEYS) == []
    with pytest.raises(UserError, match=r'prompt_date: null -> "2026-11-25"'):
        check(KEYS, KEYS | {"prompt_date": "2026-11-25"})


def test_a_method_may_be_named_in_either_way(check):
    assert check(KEYS, KEYS | {"mode": "train", "method": "cot"}) == []
    with pytest.raises(UserError, match='method: "cot" -> "vanilla"'):
        check(KEYS, KEYS | {"mode": "vanilla_train"})


def test_the_same_data_may_lie_elsewhere(check):
    assert check(KEYS, KEYS | {"data_dir": "/scratch/2"}) == ['data_dir: "/scratch/1" -> "/scratch/2"']
    assert check(KEYS, KEYS | {"train_path": "elsewhere/t.json"}) == []
    with pytest.raises(UserError, match="train_path: same name, but the file has changed"):
        check(KEYS, KEYS, data={"train_path": "another"})
    with pytest.raises(UserError, match=r'train_path: "t.json" -> "u.json"'):
        check(KEYS, KEYS | {"train_path": "u.json"}, data={"train_path": "another"})


@pytest.mark.parametrize(
    ("key", "value"), [("kernel", "reference"), ("cuda_graphs", False), ("activation_checkpointing", True)]
)
def test_how_it_is_computed_may_change(check, key, value):
    [change] = check(KEYS, KEYS | {key: value})
    assert change.startswith(f"{key}: ")


def test_what_changes_the_mathematics_can_be_accepted(check):
    with pytest.raises(UserError, match=r"lr: 1e-05 -> 0\.1"):
        check(KEYS, KEYS | {"lr": 0.1})
    assert check(KEYS, KEYS | {"lr": 0.1}, allowed=("lr",)) == ["lr: 1e-05 -> 0.1"]
