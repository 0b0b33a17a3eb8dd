import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multicoco.latent import loss as loss_module
from multicoco.latent.loss import LabelledCrossEntropy


@pytest.mark.parametrize("chunk", [1, 7, 20, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_equal_the_logits_all_at_once(monkeypatch, chunk, bias):
    monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", chunk)
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=bias).double()
    hidden = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (20,))
    targets[3] = -100
    expected = F.cross_entropy(head(hidden), targets, reduction="sum", ignore_index=-100)
    wanted = torch.autograd.grad(expected, [hidden, *head.parameters()])
    actual = LabelledCrossEntropy()(hidden, head, targets)
    found = torch.autograd.grad(actual, [hidden, *head.parameters()])
    for a, b in zip((actual, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # fp64, other order of summation


def test_logits_of_no_more_than_a_chunk_are_ever_held(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", 4)
    seen = []
    cross_entropy = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda x, *a, **k: seen.append(x.shape) or cross_entropy(x, *a, **k))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        hidden = torch.randn(10, 3, requires_grad=True)
        LabelledCrossEntropy()(hidden, nn.Linear(3, 50), torch.zeros(10, dtype=torch.long))
    assert seen == [(4, 50), (4, 50), (2, 50)]
    assert all(50 not in shape or shape == (50, 3) or shape == (50,) for shape in saved)  # recomputed in backward
