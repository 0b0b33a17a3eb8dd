"""The two losses together are the sum of what each is by itself (tests/equations.py)."""

import copy

import equations
import pytest
import torch
from reference import assert_same_gradients, gradients, internvl, qwen2, qwen2_5_vl
from supervised import make_examples, make_method, make_reasoner, make_rows, training_loss

from multicoco.models.checkpointing import checkpoint_activations

MODELS = {"internvl": internvl, "qwen2": qwen2, "qwen2_5_vl": qwen2_5_vl}
STAGE = 3


@pytest.mark.parametrize(
    ("name", "decoder", "filler", "checkpointing"),
    [
        ("internvl", {"decoder": "copy", "weight": 0.5}, 1, False),
        ("qwen2", {"decoder": "self", "reads": "last"}, None, True),
        ("qwen2_5_vl", {"decoder": "copy", "freeze_decoder": True}, None, True),
    ],
)
def test_loss_and_gradients(name, decoder, filler, checkpointing):
    weights = (0.5, 2.0, 20.0)
    codi = dict(zip(("teacher_weight", "student_weight", "distillation_weight"), weights, strict=True))
    method = make_method("codi_sim_cot", coconut={"projection": "mlp"}, codi=codi, sim_cot=decoder)
    expected, model, calls = MODELS[name]().double(), MODELS[name]().double(), []
    own, parts = method.projection(expected), (expected.get_decoder(), expected.get_output_embeddings())
    reader, head = copy.deepcopy(parts) if decoder["decoder"] == "copy" else parts
    reader.requires_grad_(not decoder.get("freeze_decoder", False))
    loss = equations.codi(method, expected, own, name, STAGE, weights, filler)
    loss = loss + equations.sim_cot(method, expected, reader, head, own, name, STAGE, filler)[1]
    loss.backward()
    reasoner = make_reasoner(method, model).train()
    reasoner.decoder.register_forward_hook(lambda *_: calls.append(1))
    if checkpointing:
        for part in {model, reasoner.objective.runs(model)} - {reasoner.decoder}:
            checkpoint_activations(part)
    output = training_loss(method, reasoner, make_rows(method, name, STAGE, filler), STAGE)
    output.backward()
    assert len(calls) == method.passes(STAGE) + (decoder["decoder"] == "self") == 6 + (name == "qwen2")
    torch.testing.assert_close(output, loss, rtol=1e-6, atol=0)
    assert_same_gradients(model, gradients(expected), 2e-5)
    assert_same_gradients(reasoner.thought_source.projection, gradients(own), 2e-5)
    if decoder["decoder"] == "copy":
        assert_same_gradients(reasoner.objective.decoder, gradients(reader), 2e-5)


def test_a_row_has_its_teacher_beside_it_and_its_steps_behind_its_thoughts():
    method, tokens = make_method("codi_sim_cot"), make_examples("qwen2")[0]
    asked = method.supervision(tokens, STAGE, 0, "a")
    assert asked.branch == make_method("codi").supervision(tokens, STAGE, 0, "a").branch
    assert asked.stretches == make_method("sim_cot").supervision(tokens, STAGE, 0, "a").stretches
    assert [*method.further_rows(tokens, STAGE, 0, "a")] == [
        "as its teacher",
        "as the decoder reads latent step 1",
        "as the decoder reads latent step 2",
    ]


@pytest.mark.parametrize(
    ("coconut", "says"),
    [
        ({"uniform_prob": 0.5}, "method is codi_sim_cot but coconut.uniform_prob is 0.5"),
        ({"thoughts": "pause"}, "method is codi_sim_cot but coconut.thoughts is pause: a step cannot be read"),
    ],
)
def test_what_either_of_the_two_refuses_is_refused(coconut, says):
    with pytest.raises(ValueError, match=says):
        make_method("codi_sim_cot", coconut=coconut)
