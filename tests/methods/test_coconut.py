"""What changes Coconut's thoughts, by its keys, on a model whose positions have three axes: loss and gradients against
the equations, written out row by row in plain PyTorch. tests/latent has the same on models whose positions have one.

Tolerances: as in tests/latent/test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

import pytest
import torch
import torch.nn.functional as F
from reference import assert_same_gradients, gradients, qwen2_5_vl
from supervised import alone, make_method, make_reasoner, make_rows, training_loss
from torch import Tensor

from multicoco.models.checkpointing import checkpoint_activations

STAGE = 2


def reference(method, model, projection) -> Tensor:
    """z_k = f(h_k), f with a constant h_k but for a row's last thoughts; in sequence, or all of a row at once."""
    keys, words = method.keys, []
    for row in make_rows(method, "qwen2_5_vl", STAGE):
        own = alone(model, row.input_ids, row.inputs)
        n = len(own.latent)
        for k in [None] * keys.jacobi_iterations if keys.jacobi_iterations else range(n):
            hidden = own.layers()[-1] if k is None else own.layers(own.latent[k])[-1]
            for place in range(n) if k is None else [k]:
                column = own.latent[place]
                cut = keys.gradient_passes is not None and place < n - keys.gradient_passes
                thought = hidden[column - 1].detach() if cut else hidden[column - 1]
                own.embeds[column] = thought if projection is None else projection(thought)
        logits = model.lm_head(own.layers()[-1])
        words += [(logits[c], label) for c, label in enumerate(row.labels[1:]) if label != -100]
    logits, labels = zip(*words, strict=True)
    return F.cross_entropy(torch.stack(logits), torch.tensor(labels))


@pytest.mark.parametrize(
    ("keys", "checkpointing"),
    [
        ({"gradient_passes": 2}, True),
        ({"projection": "mlp", "norm": "embedding"}, False),
        ({"jacobi_iterations": 2}, True),
        ({"jacobi_iterations": 3, "projection": "linear", "gradient_passes": 1}, False),
    ],
)
def test_loss_and_gradients_with_positions_along_three_axes(keys, checkpointing):
    method, expected, model, calls = make_method("coconut", coconut=keys), qwen2_5_vl().double(), qwen2_5_vl(), []
    own, reasoner = method.projection(expected), make_reasoner(method, model.double()).train()
    loss = reference(method, expected, own)
    loss.backward()
    reasoner.decoder.register_forward_hook(lambda *_: calls.append(1))
    if checkpointing:
        checkpoint_activations(model)
    output = training_loss(method, reasoner, make_rows(method, "qwen2_5_vl", STAGE), STAGE)
    output.backward()
    assert len(calls) == method.passes(STAGE) == 1 + keys.get("jacobi_iterations", 4)
    torch.testing.assert_close(output, loss, rtol=1e-6, atol=0)
    assert_same_gradients(model, gradients(expected), 1e-5)
    if own is not None:
        assert_same_gradients(reasoner.thought_source.projection, gradients(own), 1e-5)
