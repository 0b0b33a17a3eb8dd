from types import SimpleNamespace

import pytest

from multicoco.config import RunConfig
from multicoco.engine.trainer_state import TrainerState
from multicoco.errors import UserError
from multicoco.training import saver as module
from multicoco.training.position import Position
from multicoco.training.saver import Saver


class Clock:
    """Seconds pass where something is written."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Checkpoints:
    """Takes a second to copy, ten to write."""

    def __init__(self, clock: Clock, fails: bool):
        self.clock, self.fails, self.is_unfinished, self.states, self.noted = clock, fails, False, [], []

    def save(self, engine, backbone, state, config, awaits_evaluation):
        self.clock.now += 1
        self.states.append(state)
        self.is_unfinished = True

    def finish(self):
        self.is_unfinished = False
        self.clock.now += 10
        if self.fails:
            raise UserError("the disk is full")

    def note_evaluation(self, *arguments):
        self.noted.append(arguments)


@pytest.fixture
def build(monkeypatch):
    def make(fails: bool = False, **keys):
        clock, logged = Clock(), []
        monkeypatch.setattr(module, "monotonic", clock)
        fixed = {"mode": "cot_train", "name": "run", "model_id": "m", "train_path": "t.json"}
        tracker = SimpleNamespace(log=lambda metrics, step: logged.append((metrics, step)))
        at = Position(epoch=3, step=30, stage=1, best_accuracy=0.5)
        origin = TrainerState(0, 0, 0, global_batch=8, method="cot", prompt_date="2026-11-25")
        checkpoints = Checkpoints(clock, fails)
        return Saver(RunConfig(**(fixed | keys)), checkpoints, None, None, tracker, origin, at), checkpoints, logged

    return make


def test_a_checkpoint_says_where_the_run_stands_and_where_it_comes_from(build):
    saver, checkpoints, _ = build()
    saver.save()
    [state] = checkpoints.states
    assert (state.epoch, state.step, state.stage, state.best_accuracy, state.accuracy) == (3, 30, 1, 0.5, None)
    assert (state.global_batch, state.method, state.prompt_date) == (8, "cot", "2026-11-25")


@pytest.mark.parametrize(
    ("asynchronous", "awaits_evaluation", "blocked"), [(True, False, 1), (True, True, 11), (False, False, 11)]
)
def test_training_stands_still_for_as_long_as_is_said(build, asynchronous, awaits_evaluation, blocked):
    """An evaluation begins when the checkpoint before it is safe."""
    saver, checkpoints, logged = build(asynchronous_save=asynchronous)
    saver.save(awaits_evaluation)
    assert checkpoints.is_unfinished == (blocked == 1)
    saver.finish()
    saver.finish()  # nothing left to do
    metrics = {key: value for entry, _ in logged for key, value in entry.items()}
    assert metrics == {"save/blocked_seconds": blocked, "save/seconds": 11}


def test_a_save_that_a_preemption_would_cut_off_is_said_once(build, capsys):
    saver, *_ = build(preemption_grace_seconds=5)
    for _ in range(2):
        saver.save()
        saver.finish()
    assert capsys.readouterr().err.count("a save took 11 s, preemption_grace_seconds is 5") == 1


@pytest.mark.parametrize("then", ["stop", "continue"])
def test_what_a_failed_save_does(build, capsys, then):
    saver, checkpoints, _ = build(fails=True, on_save_error=then)
    saver.save()
    if then == "stop":
        with pytest.raises(UserError, match="the disk is full"):
            saver.finish()
    else:
        saver.finish()
        assert "error: the disk is full; training goes on" in capsys.readouterr().err
    assert not checkpoints.is_unfinished


def test_an_evaluation_goes_to_the_finished_checkpoint_of_its_epoch(build):
    saver, checkpoints, _ = build()
    saver.save(awaits_evaluation=True)
    saver.note_evaluation(0.25, keep=False)
    assert not checkpoints.is_unfinished and checkpoints.noted == [("epoch_0003", 0.25, 0.5, False)]
