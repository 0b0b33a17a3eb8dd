"""As TensorBoard's own reader sees it."""

import logging
import sys

import pytest
from tracked import SUMMARY, run_config, scalars

from multicoco.errors import UserError
from multicoco.tracking import Tracker

CONFIG = run_config(tracking=["tensorboard"])


def test_numbers_are_scalars(tmp_path):
    tracker = Tracker(tmp_path, CONFIG)
    tracker.log({"train/loss": 1.5, "train/stage": 1, "lr": float("nan"), "eval/cot/accuracy": None}, step=3)
    tracker.log_evaluation("epoch_0001", "cot", SUMMARY, [], 4, list)
    tracker.close()
    assert scalars(tmp_path) == {
        **{"train/loss": [(3, 1.5)], "train/stage": [(3, 1)], "lr": [(3, pytest.approx(float("nan"), nan_ok=True))]},
        **{"eval/cot/accuracy": [(4, 0.5)], "eval/cot/n": [(4, 2)], "eval/cot/seconds": [(4, 1)]},
    }


def test_a_run_that_goes_on_has_every_step_once(tmp_path):
    """It is killed after step 5, its checkpoint is of step 3, whose evaluation it had logged."""
    tracker = Tracker(tmp_path, CONFIG)
    for step in range(1, 6):
        tracker.log({"loss": step}, step=step)
    tracker.sinks[1].writer.flush()  # and never closed
    goes_on = Tracker(tmp_path, CONFIG, next_step=4)
    for step in range(4, 8):
        goes_on.log({"loss": 10 * step}, step=step)
    goes_on.close()
    assert scalars(tmp_path) == {"loss": [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60), (7, 70)]}
    anew = Tracker(tmp_path, CONFIG)  # before its first checkpoint
    anew.log({"loss": 0}, step=1)
    anew.close()
    assert scalars(tmp_path) == {"loss": [(1, 0)]}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_said_once(tmp_path, caplog):
    tracker = Tracker(tmp_path, CONFIG)
    [file] = (tmp_path / "tensorboard").iterdir()
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "full").replace(file)  # at once: its writer is at work
    with caplog.at_level(logging.WARNING):
        for step in range(30):  # more than its queue holds
            tracker.log({"loss": 1.0}, step=step)
            tracker.log({"x": 1.0}, step=step)
        tracker.close()
    assert caplog.text.count("TensorBoard: could not") == 1 and "No space left" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text().count("loss") == 30


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'multicoco\[tensorboard\]'"):
        Tracker(tmp_path, CONFIG)
