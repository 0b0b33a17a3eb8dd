"""CODI's loss and gradients, written out row by row in plain PyTorch from the paper's equations.

Tolerances: as in tests/latent/test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

import equations
import pytest
import torch
from reference import MODELS as PLAIN
from reference import assert_same_gradients, gradients, qwen2_5_vl
from supervised import IDS, make_examples, make_method, make_reasoner, make_rows, training_loss

from multicoco.models.checkpointing import checkpoint_activations

MODELS = PLAIN | {"qwen2_5_vl": qwen2_5_vl}
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 2e-5
STAGE = 3  # the one after max_latent_stage


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "weights", "filler", "more"),
    [
        ("internvl", (1.0, 1.0, 1.0), None, {}),
        ("qwen2", (0.5, 2.0, 20.0), 1, {"projection": "mlp", "pad_latent_to_max": True}),
        ("qwen2_5_vl", (0.5, 2.0, 20.0), 1, {"projection": "mlp", "pad_latent_to_max": True}),
        ("internvl", (0.0, 0.0, 1.0), None, {"thoughts": "pause"}),
        ("qwen2", (1.0, 1.0, 1.0), 1, {"projection": "mlp", "jacobi_iterations": 4}),  # as many as thoughts: the same
        ("qwen2_5_vl", (1.0, 1.0, 1.0), None, {"jacobi_iterations": 4}),
    ],
)
def test_loss_and_gradients(name, weights, filler, more, checkpointing):
    keys = dict(zip(("teacher_weight", "student_weight", "distillation_weight"), weights, strict=True))
    method = make_method("codi", coconut=more, codi=keys)
    expected, model, calls = MODELS[name]().double(), MODELS[name]().double(), []
    own = method.projection(expected)
    loss = equations.codi(method, expected, own, name, STAGE, weights, filler)
    loss.backward()
    reasoner = make_reasoner(method, model).train()
    reasoner.decoder.register_forward_hook(lambda *_: calls.append(1))
    if checkpointing:
        checkpoint_activations(model)
    output = training_loss(method, reasoner, make_rows(method, name, STAGE, filler), STAGE)
    output.backward()
    assert len(calls) == method.passes(STAGE) == (2 if "thoughts" in more else 6)  # the last, the teachers'
    torch.testing.assert_close(output, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)
    if own is not None:
        assert_same_gradients(reasoner.thought_source.projection, gradients(own), GRADIENT_TOLERANCE)


def test_it_is_of_one_stage_and_a_teacher_fits_its_extent():
    method = make_method("codi")
    assert {part.stage for epoch in range(9) for part in method.parts(epoch, 7)} == {STAGE}
    for i, tokens in enumerate(make_examples("qwen2")):
        row, _ = method.train_row(tokens, STAGE, 0, IDS[i])
        teacher = method.supervision(tokens, STAGE, 0, IDS[i]).branch
        assert row[: teacher.after] == tokens.prompt and row[-len(tokens.answer) :] == tokens.answer
        assert teacher.input_ids == [*[t for step in tokens.steps for t in step], *tokens.answer]
        extent = method.extent(tokens, STAGE)
        assert (extent.shared, extent.branch) == (teacher.after, len(teacher.input_ids))
        assert max(len(row), extent.shared + extent.branch) <= extent.length


@pytest.mark.parametrize(
    ("coconut", "codi", "says"),
    [
        (
            {"first_stage": 1},
            {},
            r"codi but coconut.first_stage is 1: it has no curriculum, its one stage is the last, 3",
        ),
        ({"advance_when_accuracy": 0.9}, {}, "coconut.advance_when_accuracy is 0.9 but codi has one stage, 3"),
        ({"uniform_prob": 0.5}, {}, "codi but coconut.uniform_prob is 0.5"),
        ({"thoughts": "borrowed"}, {}, "codi but coconut.thoughts is borrowed"),
        ({"c_thought": 0}, {}, "codi but coconut.c_thought is 0"),
        ({}, {"student_weight": 0, "distillation_weight": 0}, "nothing would teach the student"),
        ({}, {"teacher_weight": 0, "distillation_weight": 0}, "nothing would come of the teacher's pass"),
    ],
)
def test_what_makes_no_sense_is_refused(coconut, codi, says):
    with pytest.raises(ValueError, match=says):
        make_method("codi", coconut=coconut, codi=codi)


def test_a_first_stage_that_is_the_last_is_taken():
    assert make_method("codi", coconut={"first_stage": 3}).schedule.first_stage == 3
