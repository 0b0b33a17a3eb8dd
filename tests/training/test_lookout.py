import os
import signal
from types import SimpleNamespace

import pytest
import torch

from multicoco.engine.preemption import Preempted
from multicoco.training import lookout
from multicoco.training.lookout import Lookout


@pytest.fixture
def look(monkeypatch):
    """A lookout on one rank of two; `others` is what the other one says of (stopped, writing)."""
    others = [0, 0]
    monkeypatch.setattr(lookout.dist, "all_reduce", lambda flags: flags.add_(torch.tensor(others)))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    finished = []
    saver = SimpleNamespace(checkpoints=SimpleNamespace(is_writing=False), finish=lambda: finished.append(1))
    yield Lookout(saver, torch.device("cpu")), saver, others, finished
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_checkpoint_is_finished_when_all_ranks_have_written(look):
    look_around, saver, others, finished = look
    for mine, theirs in ((True, 0), (False, 1), (True, 1)):
        saver.checkpoints.is_writing, others[1] = mine, theirs
        look_around()
        assert not finished
    saver.checkpoints.is_writing, others[1] = False, 0
    look_around()
    assert finished


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_this_rank_ends_the_run(look, number):
    os.kill(os.getpid(), number)
    with pytest.raises(Preempted):
        look[0]()


def test_a_signal_to_another_rank_ends_it_too(look):
    look[2][0] = 1
    with pytest.raises(Preempted):
        look[0]()
