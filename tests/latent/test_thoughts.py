"""Truncated backpropagation against forward passes that recompute the whole sequence (tests/reference.py).

Tolerances: as in test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

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

from multicoco.latent.reasoner import LatentReasoner
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
@pytest.mark.parametrize("name", MODELS)
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
