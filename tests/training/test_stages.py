"""What happens to the engine at a stage transition; that its steps are then those of a new AdamW: tests/engine."""

from pathlib import Path

import pytest

from multicoco.config import RunConfig
from multicoco.engine.checkpoint import Checkpoints
from multicoco.errors import UserError
from multicoco.methods import method_class
from multicoco.training import stages as module
from multicoco.training.position import Position
from multicoco.training.stages import Stages

NOWHERE = Checkpoints(Path("nowhere"), 1, 1)


class Engine:
    def __init__(self, zero_stage: int):
        self.zero_stage = zero_stage

    def zero_optimization_stage(self) -> int:
        return self.zero_stage


@pytest.fixture
def entered(monkeypatch):
    """Goes through epochs of a run; returns what was done to the engine, in order."""

    def run(zero_stage: int = 2, **keys):
        done = []
        monkeypatch.setattr(module, "forget_trace", lambda engine: done.append("forget"))
        monkeypatch.setattr(module, "reset_optimizer_state", lambda engine: done.append("reset"))
        monkeypatch.setattr(module, "start_schedule", lambda engine, config, lr, steps: done.append((lr, steps)))
        latent = {"enabled": True, "epochs_per_stage": 2, "max_latent_stage": 1, "stage_lr": keys.pop("stage_lr", None)}
        fixed = {"mode": "coconut_train", "name": "run", "model_id": "m", "train_path": "t.json", "num_epochs": 5}
        config = RunConfig(**(fixed | keys), lr=0.5, coconut=latent)
        method, at = method_class("coconut")(config), Position()
        stages = Stages(config, Engine(zero_stage), method, 10, NOWHERE)
        for epoch in range(5):
            at.best_accuracy = 0.9
            stages.enter(method.schedule.stage(epoch), at)
            done.append(at.best_accuracy)
        return done

    return run


def test_the_optimizer_and_the_schedule_start_again(entered):
    assert entered() == [(0.5, 20), None, 0.9, "reset", (0.5, 20), None, 0.9, "reset", (0.5, 10), None]


def test_each_stage_may_have_its_rate(entered):
    rates = [call[0] for call in entered(stage_lr=[0.1, 0.2]) if isinstance(call, tuple)]
    assert rates == [0.1, 0.2, 0.2]


def test_without_a_restart_one_schedule_spans_the_run(entered):
    assert entered(reset_optimizer=False) == [(0.5, 50), None, 0.9, None, 0.9, None]


def test_zero3_forgets_the_order_of_its_modules(entered):
    assert entered(zero_stage=3).count("forget") == 3


def test_a_method_may_change_its_stage_within_an_epoch(monkeypatch):
    done = []
    monkeypatch.setattr(module, "reset_optimizer_state", lambda engine: done.append("reset"))
    monkeypatch.setattr(module, "start_schedule", lambda engine, config, lr, steps: done.append(steps))
    keys = {"mode": "train", "method": "icot", "name": "run", "model_id": "m", "train_path": "t.json", "num_epochs": 2}
    config = RunConfig(**keys, icot={"remove_per_epoch": 2, "remove_all_beyond": 3})
    stages, at = Stages(config, Engine(2), method_class("icot")(config), 9, NOWHERE), Position()
    for epoch in range(2):
        for part in stages.of_epoch(epoch):
            stages.enter(part.stage, at)
    # a token goes every 4 steps; a warm-up after each would be all of the schedule
    assert done == [18, "reset", "reset", "reset"]
    assert [part.stage for epoch in range(2) for part in stages.of_epoch(epoch)] == [0, 1, 2, 2, 3]


@pytest.mark.parametrize(("accuracy", "ends"), [(0.9, True), (1.0, True), (0.89, False), (None, False)])
def test_a_stage_ends_when_it_is_learned(accuracy, ends):
    keys = {"mode": "coconut_train", "name": "run", "model_id": "m", "train_path": "t", "val_path": "v"}
    latent = {"enabled": True, "epochs_per_stage": 3, "max_latent_stage": 2, "advance_when_accuracy": 0.9}
    method = method_class("coconut")(RunConfig(**keys, num_epochs=9, coconut=latent))
    stages, at = Stages(method.config, Engine(2), method, 10, NOWHERE), Position(epoch=2, stage=0)
    assert [method.schedule.stage(epoch) for epoch in range(5)] == [0, 0, 0, 1, 1]
    stages.note_accuracy(accuracy, at)
    assert at.ended_early == [2] * ends
    assert [method.schedule.stage(epoch) for epoch in range(5)] == ([0, 0, 1, 1, 1] if ends else [0, 0, 0, 1, 1])
    last = Position(epoch=9, stage=3)
    stages.note_accuracy(1.0, last)
    assert last.ended_early == []  # there is no stage after it


@pytest.mark.parametrize(
    ("epoch", "accuracy", "collapses"),
    [(2, 0.39, True), (2, 0.41, False), (2, None, False), (3, 0.43, True), (3, 0.45, False), (9, 0.1, False)],
)
def test_training_stops_when_a_stage_has_collapsed_unless_it_is_over_anyway(epoch, accuracy, collapses):
    """0.8 is the best of the stage, which ends after epoch 3, and 0.9 of the one before; the run ends after epoch 9."""
    keys = {"mode": "coconut_train", "name": "run", "model_id": "m", "train_path": "t", "val_path": "v"}
    latent = {"enabled": True, "epochs_per_stage": 3, "max_latent_stage": 2, "collapse_below": 0.5}
    method = method_class("coconut")(RunConfig(**keys, num_epochs=9, coconut=latent))
    stages = Stages(method.config, Engine(2), method, 10, NOWHERE)
    at = Position(epoch=epoch, stage=0, best_accuracy=0.8, earlier_best=0.9)
    if not collapses:
        stages.note_accuracy(accuracy, at)
        return
    with pytest.raises(UserError, match="stage 0 has collapsed"):
        stages.note_accuracy(accuracy, at)


def test_a_stage_remembers_the_best_of_the_one_before(monkeypatch):
    monkeypatch.setattr(module, "reset_optimizer_state", lambda engine: None)
    monkeypatch.setattr(module, "start_schedule", lambda *_: None)
    keys = {"mode": "coconut_train", "name": "run", "model_id": "m", "train_path": "t", "num_epochs": 3}
    method = method_class("coconut")(RunConfig(**keys, coconut={"enabled": True}))
    stages, at = Stages(method.config, Engine(2), method, 10, NOWHERE), Position()
    for stage, accuracy in ((0, 0.9), (0, 0.7), (1, 0.5)):
        stages.enter(stage, at)
        at.note_accuracy(accuracy)
    assert (at.best_accuracy, at.earlier_best) == (0.5, 0.9)
