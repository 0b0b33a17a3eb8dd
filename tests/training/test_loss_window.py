import pytest
import torch

from multicoco.training import loss_window
from multicoco.training.loss_window import LossWindow


def test_the_mean_of_the_steps_that_were_taken(monkeypatch):
    monkeypatch.setattr(loss_window.dist, "all_reduce", lambda tensor: tensor.mul_(2))  # as of two ranks alike
    window, counts = LossWindow(torch.device("cpu")), torch.tensor([3, 10])
    for share, skipped in ((0.5, False), (float("nan"), True), (1.5, False)):
        window.add(torch.tensor(share), counts, 8, skipped)
    tokens_before = int(window.tokens)
    metrics = window.read()
    assert metrics["train/loss"] == pytest.approx(2.0)  # two ranks' shares of 0.5 and of 1.5
    assert tokens_before == 30 and metrics["train/tokens_per_s"] > 0
    assert metrics["train/padding"] == pytest.approx(1 - 30 / 48)  # two ranks, three steps of 8 columns each
    window.add(torch.tensor(float("nan")), counts, 8, skipped=True)
    assert "train/loss" not in window.read()  # begun anew, and nothing to tell
