"""A checkpoint is evaluated as it was trained."""

import pytest

from multicoco.config import RunConfig
from multicoco.engine.trainer_state import TrainerState
from multicoco.engine.weights import Weights
from multicoco.evaluation.run import as_trained
from multicoco.methods import evaluated_methods

TRAINED = {"mode": "coconut_train", "coconut": {"enabled": True, "c_thought": 2, "max_latent_stage": 3}}


def config(**keys) -> RunConfig:
    latent = {"enabled": True, "max_latent_stage": 6}
    defaults = {"coconut": latent, "eval_config": {"coconut": True}}
    fixed = {"mode": "eval_only", "name": "run", "model_id": "model", "val_path": "val.json"}
    return RunConfig(**(fixed | defaults | keys))


def checkpoint(stage: int = 2, method: str | None = "coconut", trained: dict = TRAINED) -> Weights:
    return Weights("folder/model", "folder", TrainerState(4, stage, 9, method=method), trained)


@pytest.mark.parametrize("method", ["coconut", None])  # None: written before checkpoints knew their method
def test_at_its_stage_with_its_methods_keys(method):
    found, stage, changes = as_trained(config(), checkpoint(method=method))
    assert stage == 2 and (found.coconut.c_thought, found.coconut.max_latent_stage) == (2, 3)
    assert changes == ["coconut.c_thought: 1 -> 2", "coconut.max_latent_stage: 6 -> 3"]


def test_a_control_by_itself_where_its_method_is_named():
    found, stage, changes = as_trained(config(), checkpoint(method="no_thoughts"))
    assert (found.trained_method, evaluated_methods(found), stage) == ("no_thoughts", ["no_thoughts"], 2)
    assert changes[0] == "method: null -> no_thoughts"
    found, _, _ = as_trained(config(method="coconut"), checkpoint(method="no_thoughts"))
    assert evaluated_methods(found) == ["coconut"]  # as it was asked for


def test_in_all_modes_too():
    evaluated = {"coconut": True, "cot": True, "vanilla": True}
    assert as_trained(config(eval_config=evaluated), checkpoint())[1] == 2


def test_by_a_method_without_a_key_of_its_own():
    removing = {"mode": "train", "method": "icot", "icot": {"remove_all_beyond": 7}}
    asked = config(coconut={}, eval_config={"methods": ["icot", "cot"]})
    found, stage, changes = as_trained(asked, checkpoint(stage=5, method="icot", trained=removing))
    assert (found.icot.remove_all_beyond, stage, changes) == (7, 5, ["icot.remove_all_beyond: null -> 7"])
    assert evaluated_methods(found) == ["icot", "cot"]


def test_by_another_method_the_config_decides():
    cot = checkpoint(stage=0, method="cot", trained={"mode": "cot_train"})
    found, stage, changes = as_trained(config(), cot)
    assert (found, stage, changes) == (config(), 6, [])


def test_a_model_of_another_origin_is_asked_at_the_last_stage():
    assert as_trained(config(), Weights("OpenGVLab/InternVL3-1B-hf", ""))[1] == 6
    plain = config(coconut={}, eval_config={"cot": True})
    assert as_trained(plain, Weights("OpenGVLab/InternVL3-1B-hf", "")) == (plain, 0, [])
