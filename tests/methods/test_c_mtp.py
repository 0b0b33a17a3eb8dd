"""C-MTP's loss and gradients, written out row by row in plain PyTorch from its definition.

Tolerances: as in tests/latent/test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from reference import LATENT, assert_same_gradients, gradients, qwen2_5_vl
from reference import MODELS as PLAIN
from supervised import (
    alone,
    make_examples,
    make_method,
    make_reasoner,
    make_rows,
    training_loss,
    training_output,
)
from torch import Tensor

from multicoco.curriculum import ExampleTokens
from multicoco.latent.thoughts import Projection
from multicoco.models.checkpointing import checkpoint_activations

MODELS = PLAIN | {"qwen2_5_vl": qwen2_5_vl}
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5
STRETCHES = {  # of each example: (latent step, first token, end) of its thoughts, c_thought being 2
    1: [[(0, 0, 1), (0, 1, 3)], [(0, 0, 2), (0, 2, 4)], [], [(0, 0, 1), (0, 0, 1)]],
    3: [
        [(0, 0, 1), (0, 1, 3), (1, 0, 1), (1, 1, 3)],
        [(0, 0, 2), (0, 2, 4)],
        [],
        [(0, 0, 1), (0, 0, 1), (1, 0, 1), (1, 1, 2)],
    ],
}


def reference(model, projection: Projection | None, name: str, stage: int, weight: float, filler: int | None) -> Tensor:
    method, examples = make_method("c_mtp"), make_examples(name)
    words, errors = [], []
    for i, (row, tokens) in enumerate(zip(make_rows(method, name, stage), examples, strict=True)):
        if i == filler:
            continue
        own, columns = alone(model, row.input_ids, row.inputs), []
        # the second latent step, which is the last, stands for all steps from the second on
        groups = [*tokens.steps[:1], [*chain.from_iterable(tokens.steps[1:])]]
        means = [
            torch.stack([model.get_input_embeddings().weight[t] for t in groups[group][start:end]]).mean(0)
            for group, start, end in STRETCHES[stage][i]
        ]
        for column, mean in zip(own.latent, means, strict=True):
            own.embeds[column] = mean
            columns.append(column)
        hidden = own.layers()[-1]
        logits = model.lm_head(hidden)
        words += [(logits[c], label) for c, label in enumerate(row.labels[1:]) if label != -100]
        for column, mean in zip(columns, means, strict=True):
            thought = hidden[column - 1] if projection is None else projection(hidden[column - 1])
            errors.append((thought - mean.detach()).square().sum() / mean.detach().square().sum())
    cross_entropy = F.cross_entropy(
        torch.stack([logit for logit, _ in words]), torch.tensor([label for _, label in words])
    )
    return cross_entropy + weight * torch.stack(errors).mean()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "stage", "weight", "filler", "projection"),
    [
        ("internvl", 1, 1.0, None, "none"),
        ("internvl", 3, 0.5, 1, "none"),
        ("qwen2", 3, 2.0, None, "mlp"),
        ("qwen2_5_vl", 3, 2.0, 1, "mlp"),
    ],
)
def test_loss_and_gradients(name, stage, weight, filler, projection, checkpointing):
    method = make_method("c_mtp", coconut={"projection": projection}, c_mtp={"weight": weight})
    expected, model, calls = MODELS[name]().double(), MODELS[name]().double(), []
    reasoner = make_reasoner(method, model).train()
    own = method.projection(expected)
    loss = reference(expected, own, name, stage, weight, filler)
    loss.backward()
    reasoner.decoder.register_forward_hook(lambda *_: calls.append(1))
    if checkpointing:
        checkpoint_activations(model)
    output = training_loss(method, reasoner, make_rows(method, name, stage, filler), stage)
    output.backward()
    assert len(calls) == 1 == method.passes(stage)
    torch.testing.assert_close(output, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)
    if own is not None:
        assert_same_gradients(reasoner.thought_source.projection, gradients(own), GRADIENT_TOLERANCE)


def test_a_batch_without_thoughts_has_the_language_models_loss():
    method, model = make_method("c_mtp", coconut={"projection": "mlp"}), MODELS["llama"]().double()
    reasoner, rows = make_reasoner(method, model), make_rows(method, "llama", 1)[2:3]
    loss = training_loss(method, reasoner, rows, 1)
    loss.backward()
    plain = torch.tensor(rows[0].input_ids)[None]
    logits = model.lm_head(model.get_decoder()(plain).last_hidden_state)[0, :-1]
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor(rows[0].labels[1:])), rtol=1e-6, atol=0)
    assert all(p.grad is not None and not p.grad.any() for p in reasoner.thought_source.parameters())


def test_what_the_thoughts_were_fed_is_told():
    method, model = make_method("c_mtp"), MODELS["llama"]().double()
    thoughts = training_output(method, make_reasoner(method, model), make_rows(method, "llama", 3), 3).thoughts
    steps, table = make_examples("llama")[0].steps, model.get_input_embeddings().weight
    assert thoughts.shape == (4, 4, 32) and not thoughts[1, 2:].any() and not thoughts[2].any()
    torch.testing.assert_close(thoughts[0, 1], table[steps[0][1:]].mean(0))


def test_thoughts_are_generated_at_inference():
    method = make_method("c_mtp")
    assert [method.prompt_passes(stage) for stage in (0, 1, 2, 3)] == [1, 3, 5, 5]
    assert [method.passes(stage) for stage in (0, 1, 2, 3)] == [1, 1, 1, 1]


def test_an_example_has_no_thought_that_stands_for_nothing():
    method, example = make_method("c_mtp"), ExampleTokens([1], [[3, 4, 5]], [6])
    for stage in (2, 3):
        assert method.train_row(example, stage, 0, "a")[0] == [1, 58, LATENT, LATENT, 59, 6]
        assert method.supervision(example, stage, 0, "a").stretches == [[3], [4, 5]]
        assert method.prompt_row(example, stage) == [1, 58, LATENT, LATENT, 59]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"thoughts": "pause"}, "method is c_mtp but coconut.thoughts is pause"),
        ({"c_thought": 0}, "method is c_mtp but coconut.c_thought is 0"),
        ({"gradient_passes": 1}, "method is c_mtp but coconut.gradient_passes is 1"),
        ({"pad_latent_to_max": True}, "method is c_mtp but coconut.pad_latent_to_max is true"),
    ],
)
def test_what_makes_no_sense_is_refused(keys, says):
    with pytest.raises(ValueError, match=says):
        make_method("c_mtp", coconut=keys)
