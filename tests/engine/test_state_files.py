import copy
import os
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from multicoco.engine.state_files import StateFiles
from multicoco.errors import UserError


def state() -> dict:
    """Of the kinds that DeepSpeed saves: tied weights, views of a flat buffer, optimizer state, counters, objects."""
    tied, flat = torch.randn(3, 4), torch.randn(10)
    scaler = DynamicLossScaler(2**8, 2, 1, 1, False)
    return {
        "module": {"embedding": tied, "head": tied.detach(), "a": flat[:4], "b": flat[4:], "none": torch.empty(0)},
        "optimizer": {"state": {0: {"exp_avg": torch.randn(5).bfloat16(), "step": 3}}, "loss_scaler": scaler},
        "schedule": [{"lr": 0.1}],
    }


def train(state: dict) -> None:
    """Changes everything in place."""
    for tensor in [*state["module"].values(), state["optimizer"]["state"][0]["exp_avg"]]:
        tensor.add_(1)
    state["optimizer"]["state"][0]["step"] += 1
    state["optimizer"]["loss_scaler"].cur_scale = 1
    state["schedule"][0]["lr"] = 0.0


def test_a_copy_is_what_was_there_whatever_training_does_then(tmp_path):
    trained = state()
    expected = copy.deepcopy(trained)
    files = StateFiles(copying=True)
    files.save(trained, "states.pt")
    train(trained)
    [(path, content)] = files.contents.items()
    torch.save(content, tmp_path / path)
    loaded = files.load(str(tmp_path / path))
    torch.testing.assert_close(loaded["module"], expected["module"], rtol=0, atol=0)
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], expected["optimizer"]["state"][0]["exp_avg"])
    assert loaded["optimizer"]["state"][0]["step"] == 3
    assert loaded["optimizer"]["loss_scaler"].cur_scale == 2**8
    assert loaded["schedule"] == expected["schedule"]


@pytest.mark.parametrize("copying", [False, True])
def test_stages_are_numbers_in_files_whatever_pythons_enumerations_are_pickled_as(tmp_path, copying):
    files = StateFiles(copying)
    files.save({"zero_stage": ZeroStageEnum.weights, "groups": [{"stage": ZeroStageEnum.disabled}]}, "states.pt")
    [content] = files.contents.values()
    torch.save(content, tmp_path / "states.pt")
    loaded = StateFiles().load(str(tmp_path / "states.pt"))
    assert (type(loaded["zero_stage"]), type(loaded["groups"][0]["stage"])) == (int, int)
    assert loaded["zero_stage"] == ZeroStageEnum.weights


def test_a_tensor_under_two_names_is_kept_once_and_a_view_without_the_rest():
    files = StateFiles(copying=True)
    files.save(state(), "states.pt")
    [content] = files.contents.values()
    module = content["module"]
    assert module["embedding"].data_ptr() == module["head"].data_ptr()
    assert module["a"].untyped_storage().nbytes() == 4 * 4


class Burglar:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_a_pickle_with_code_is_refused_by_name(tmp_path):
    torch.save({"module": Burglar(tmp_path / "burgled")}, tmp_path / "states.pt")
    with pytest.raises(UserError, match=r"states.pt holds \w+.mkdir, which is no plain data"):
        StateFiles().load(str(tmp_path / "states.pt"))
    assert not (tmp_path / "burgled").exists()
