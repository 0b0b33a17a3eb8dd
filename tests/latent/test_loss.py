import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multicoco.latent import loss as loss_module
from multicoco.latent.loss import LabelledCrossEntropy
from multicoco.latent.rescaling import AS_THEY_ARE, Rescaling


@pytest.mark.parametrize("chunk", [1, 7, 20, 64])
@pytest.mark.parametrize(
    ("bias", "rescaling"),
    [(False, AS_THEY_ARE), (True, AS_THEY_ARE), (True, Rescaling(0.5, 0.7)), (False, Rescaling(3))],
)
def test_loss_and_gradients_equal_the_logits_all_at_once(monkeypatch, chunk, bias, rescaling):
    monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", chunk)
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=bias).double()
    hidden = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (20,))
    targets[3] = -100
    expected = F.cross_entropy(rescaling(head(hidden)), targets, reduction="sum", ignore_index=-100)
    wanted = torch.autograd.grad(expected, [hidden, *head.parameters()])
    actual = LabelledCrossEntropy(rescaling)(hidden, head, targets)
    found = torch.autograd.grad(actual, [hidden, *head.parameters()])
    for a, b in zip((actual, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # fp64, other order of summation


@pytest.mark.parametrize("trained", ["hidden", "head"])
def test_what_is_not_trained_gets_no_gradient(trained):
    head = nn.Linear(6, 11).requires_grad_(trained == "head")
    hidden = torch.randn(20, 6, requires_grad=trained == "hidden")
    LabelledCrossEntropy()(hidden, head, torch.randint(0, 11, (20,))).backward()
    assert (hidden.grad is None, head.weight.grad is None, head.bias.grad is None) == (
        (False, True, True) if trained == "hidden" else (True, False, False)
    )


def test_bf16_stays_within_its_rounding(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", 7)
    torch.manual_seed(0)
    exact, targets = torch.randn(20, 6, dtype=torch.float64, requires_grad=True), torch.randint(0, 11, (20,))
    head = nn.Linear(6, 11, bias=False).double()
    expected = F.cross_entropy(head(exact), targets, reduction="sum")
    wanted = torch.autograd.grad(expected, [exact, head.weight])
    hidden, rounded = exact.detach().bfloat16().requires_grad_(), copy.deepcopy(head).bfloat16()
    loss = LabelledCrossEntropy()(hidden, rounded, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-2, atol=0)  # 8 bits of mantissa
    for actual, want in zip(torch.autograd.grad(loss, [hidden, rounded.weight]), wanted, strict=True):
        torch.testing.assert_close(actual.double(), want, rtol=2e-2, atol=2e-2 * want.abs().max().item())


def test_autocast_makes_the_logits_in_its_type():
    torch.manual_seed(0)
    head, hidden, targets = nn.Linear(6, 11), torch.randn(20, 6, requires_grad=True), torch.randint(0, 11, (20,))
    inputs = [hidden, *head.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(head(hidden).float(), targets, reduction="sum")
        loss = LabelledCrossEntropy()(hidden, head, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # from the same logits
    for actual, want in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, want, rtol=2e-2, atol=2e-2 * want.abs().max().item())  # 8 bits of mantissa


class LargestLogits(TorchDispatchMode):
    """The most rows of any tensor as wide as the vocabulary that an operation makes."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.dim() > 1 and x.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, x.shape[:-1].numel())
        return result


def test_logits_of_no_more_than_a_chunk_are_ever_held(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", 4)
    saved = []
    hidden, head = torch.randn(10, 3, requires_grad=True), nn.Linear(3, 50)
    with LargestLogits(50) as largest:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
            loss = LabelledCrossEntropy()(hidden, head, torch.zeros(10, dtype=torch.long))
        assert largest.rows == 4
        loss.backward()
    assert largest.rows == 4
    assert sorted(saved) == sorted([(10, 3), (50, 3), (50,), (10,), (10,)])  # hidden, weight, bias, targets, lse
