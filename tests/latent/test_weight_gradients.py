"""That the columns' weight gradients are made once, and are right however the layers are called. That those of whole
steps are right, for any batch, is tested in test_reasoner.py, and for every ZeRO stage in tests/engine/test_zero.py."""

import copy

import pytest
import torch
from reference import LATENT, assert_same_gradients, coconut_loss, gradients, qwen2
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.weight_gradients import StackedLinear, stack_weight_gradients, stacked_columns
from multicoco.models.checkpointing import checkpoint_activations

PREFIX, SUFFIX = 6, 4


def batch(n_latents: int, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 50, (3, PREFIX + n_latents + SUFFIX), generator=torch.Generator().manual_seed(seed))
    ids[:, PREFIX : PREFIX + n_latents] = LATENT
    labels = ids.clone()
    labels[:, : PREFIX + n_latents] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class ProductsOfShape(TorchDispatchMode):
    """Counts matrix products with a result of one shape, BLAS's and oneDNN's."""

    products = (torch.ops.aten.mm.default, torch.ops.mkldnn._linear_pointwise.default)

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += function in self.products and result.shape == self.shape
        return result


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_weight_gets_as_many_products_with_many_latents_as_with_two(checkpointing):
    def products(n_latents: int) -> int:
        reasoner = LatentReasoner(qwen2(), LATENT).train()
        if checkpointing:
            checkpoint_activations(reasoner.model)
        down = reasoner.decoder.layers[0].mlp.down_proj.weight  # no other weight and no activation has its shape
        loss = reasoner(**batch(n_latents)).loss
        with ProductsOfShape(down.shape) as counter:
            loss.backward()
        return counter.count

    n_layers = len(qwen2().get_decoder().layers)
    assert products(2) == products(9) == 3 * n_layers  # the prefill's, the columns', the last pass's


def test_gradients_of_steps_whose_backwards_come_later_are_their_own():
    """Two forwards, then their backwards with recomputes, in both orders."""
    expected = []
    for seed in (0, 1):
        model = qwen2().double()
        coconut_loss(model, **batch(4, seed)).backward()
        expected.append(gradients(model))
    for order in ((0, 1), (1, 0)):
        reasoner = LatentReasoner(qwen2().double(), LATENT).train()
        checkpoint_activations(reasoner.model)
        losses = [reasoner(**batch(4, seed)).loss for seed in (0, 1)]
        for step in order:
            reasoner.zero_grad()
            losses[step].backward()
            assert_same_gradients(reasoner.model, expected[step], 1e-5)  # RMSNorm is computed in fp32


def test_gradients_through_the_thoughts_alone():
    """Some passes have no part in them, and none of the layers' last products is made for the last pass."""
    plain, stacked = LatentReasoner(qwen2().double(), LATENT), LatentReasoner(qwen2().double(), LATENT)
    for module in plain.decoder.modules():
        if isinstance(module, StackedLinear):
            module.__class__ = nn.Linear
    for reasoner in (plain, stacked):
        reasoner(**batch(3), n_passes=12).thoughts.square().sum().backward()
    assert_same_gradients(stacked.model, gradients(plain.model), 1e-12)  # fp64, sums in another order


def test_gradient_of_one_weight_alone():
    reasoner = LatentReasoner(qwen2().double(), LATENT)
    reasoner(**batch(4)).loss.backward()
    weight = reasoner.decoder.layers[1].self_attn.q_proj.weight
    [alone] = torch.autograd.grad(reasoner(**batch(4)).loss, [weight])
    assert torch.equal(alone, weight.grad)


@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_called_by_itself_is_linear(columns, bias):
    expected = nn.Linear(4, 6, bias=bias).double()
    layer = copy.deepcopy(expected)
    stack_weight_gradients(nn.ModuleList([layer]))
    x = torch.randn(3, columns, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, given in zip((expected, layer), inputs, strict=True):
        module(given).square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for ours, theirs in zip(layer.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_frozen_layer_keeps_nothing_of_its_input():
    layer, saved = nn.Linear(4, 6).requires_grad_(False), []
    stack_weight_gradients(nn.ModuleList([layer]))
    x = torch.randn(3, 5, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        out = layer(x)
    assert saved == [layer.weight.shape]
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], layer.weight.sum(0).expand_as(x))


def test_autocast_is_left_to_pytorch():
    layer = nn.Linear(4, 6)
    stack_weight_gradients(nn.ModuleList([layer]))
    with torch.autocast("cpu", torch.bfloat16), stacked_columns():
        out = layer(torch.ones(3, 1, 4))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_layers_of_other_classes_are_left_alone():
    class Quantized(nn.Linear):
        pass

    modules = nn.ModuleList([nn.Linear(2, 2), Quantized(2, 2)])
    stack_weight_gradients(modules)
    assert [type(module) for module in modules] == [StackedLinear, Quantized]
