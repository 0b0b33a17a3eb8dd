"""Truncated and projected thoughts against forward passes that recompute the whole sequence (tests/reference.py).

Tolerances: as in test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

import math
from collections.abc import Callable

import pytest
import torch
from reference import (
    LATENT,
    MODELS,
    assert_same_gradients,
    coconut_loss,
    gradients,
    mixed_batch,
)
from torch import Tensor

from multicoco.latent.controls import another_rows
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.schedule import SEQUENTIAL, Jacobi
from multicoco.latent.thoughts import Projected, Projection, hidden_state
from multicoco.models.checkpointing import checkpoint_activations

LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5


def truncated(batch: dict[str, Tensor], n: int) -> Callable[[Tensor], Tensor]:
    """For `coconut_loss`: of each row, all but the last n hidden states that are fed are constants."""
    is_latent = batch["input_ids"] == LATENT
    columns = iter([column for column, flags in enumerate(is_latent.T) if flags.any()])

    def thought(hidden: Tensor) -> Tensor:
        left = is_latent[:, next(columns) :].sum(-1)
        return torch.stack([row if n_left <= n else row.detach() for row, n_left in zip(hidden, left, strict=True)])

    return thought


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["internvl", "qwen2"])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_gradients_go_through_the_last_passes_of_each_row_alone(name, n, checkpointing):
    batch, expected, model = mixed_batch(name), MODELS[name]().double(), MODELS[name]().double()
    loss = coconut_loss(expected, **batch, thought=truncated(batch, n))
    loss.backward()
    reasoner = LatentReasoner(model, LATENT, gradient_passes=n).train()
    if checkpointing:
        checkpoint_activations(model)
    output = reasoner(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)


@pytest.mark.parametrize("n", [2, 3])
def test_as_many_passes_as_there_are_thoughts_are_all(n):
    """In fp32, bit for bit; and one fewer is something else."""
    batch, found = mixed_batch("llama"), []
    for gradient_passes in (n, None):
        reasoner = LatentReasoner(MODELS["llama"](), LATENT, gradient_passes=gradient_passes)
        reasoner(**batch).loss.backward()
        found.append(gradients(reasoner.model))
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, found), strict=True)) == (n == 3)


def projected(x: Tensor, weights: dict[str, Tensor], kind: str, target: Tensor | None) -> Tensor:
    """Written out: the layers, LayerNorm, the norm."""
    if kind != "none":
        x = x @ weights["layers.0.weight"].T + weights["layers.0.bias"]
    if kind == "mlp":
        x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
        x = x @ weights["layers.2.weight"].T + weights["layers.2.bias"]
    if kind != "none":
        last = {"linear": 1, "mlp": 3}[kind]
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        x = x * weights[f"layers.{last}.weight"] + weights[f"layers.{last}.bias"]
    return x if target is None else x / x.square().sum(-1, keepdim=True).sqrt() * target


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["internvl", "qwen2"])
@pytest.mark.parametrize(
    ("kind", "to_embeddings", "n"),
    [("linear", False, None), ("mlp", False, None), ("none", True, None), ("mlp", True, 1)],
)
def test_projected_thoughts(name, kind, to_embeddings, n, checkpointing):
    batch, expected, model = mixed_batch(name), MODELS[name]().double(), MODELS[name]().double()
    weights = {key: p.detach().requires_grad_() for key, p in Projection(model, kind, seed=3).named_parameters()}
    target = expected.get_input_embeddings().weight.detach().square().sum(-1).sqrt().mean() if to_embeddings else None
    truncation = truncated(batch, 9 if n is None else n)
    loss = coconut_loss(expected, **batch, thought=lambda h: projected(truncation(h), weights, kind, target))
    loss.backward()

    projection = Projection(model, kind, to_embeddings, seed=3)
    reasoner = LatentReasoner(model, LATENT, thoughts=Projected(hidden_state, projection), gradient_passes=n).train()
    if checkpointing:
        checkpoint_activations(model)
    output = reasoner(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)
    assert_same_gradients(projection, {key: weight.grad for key, weight in weights.items()}, GRADIENT_TOLERANCE)


@pytest.mark.parametrize(
    ("schedule", "source"),
    [(SEQUENTIAL, hidden_state), (SEQUENTIAL, another_rows), (Jacobi(1), hidden_state), (Jacobi(2), hidden_state)],
)
def test_what_was_projected_is_known_whatever_the_order_of_the_passes(schedule, source):
    """Projected, it is what was fed."""
    batch, model = mixed_batch("llama"), MODELS["llama"]().double()
    projected = Projected(source, Projection(model, "mlp"))
    reasoner = LatentReasoner(model, LATENT, thoughts=projected, pass_schedule=schedule)
    with torch.no_grad():
        passes = reasoner.run_passes(batch["input_ids"], batch["attention_mask"])
        before, is_latent = passes.unprojected(projected), batch["input_ids"] == LATENT
        torch.testing.assert_close(
            projected.projection(before[is_latent]), passes.embeds[is_latent], rtol=0, atol=1e-12
        )
    assert torch.equal(before[~is_latent], passes.embeds[~is_latent])
    assert torch.equal(passes.unprojected(source), passes.embeds)


def test_a_projection_starts_from_its_seed_alone():
    model, state = MODELS["llama"](), torch.get_rng_state()
    first, again, other = (Projection(model, "mlp", seed=seed).layers[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_thought_has_the_mean_norm_of_the_embeddings_in_any_precision():
    model = MODELS["llama"]().bfloat16()
    projection = Projection(model, "linear", to_embeddings=True)
    thoughts = projection(torch.randn(5, 32).bfloat16())
    mean = model.get_input_embeddings().weight.float().norm(dim=-1).mean()
    assert thoughts.dtype == torch.bfloat16
    torch.testing.assert_close(thoughts.float().norm(dim=-1), mean.expand(5), rtol=1e-2, atol=0)
    assert projection(torch.zeros(1, 32).bfloat16()).isfinite().all()
