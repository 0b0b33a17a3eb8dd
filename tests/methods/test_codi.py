"""CODI's loss and gradients, written out row by row in plain PyTorch from the paper's equations.

Tolerances: as in tests/latent/test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

import pytest
import torch
import torch.nn.functional as F
from reference import LATENT, MODELS, assert_same_gradients, gradients
from supervised import IDS, embedded, layers_of, make_examples, make_method, make_reasoner, make_rows, training_loss
from torch import Tensor

from multicoco.models.checkpointing import checkpoint_activations

LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 2e-5
STAGE = 3  # the one after max_latent_stage


def smooth_l1(x: Tensor, y: Tensor) -> Tensor:
    difference = (x - y).abs()
    return torch.where(difference < 1, difference.square() / 2, difference - 0.5).mean()


def reference(method, model, projection, name: str, weights: tuple[float, float, float], filler: int | None) -> Tensor:
    written: dict[str, list[tuple[Tensor, int]]] = {"student": [], "teacher": []}
    distances = []
    for i, (row, tokens) in enumerate(zip(make_rows(method, name, STAGE), make_examples(name), strict=True)):
        if i == filler:
            continue
        embeds = embedded(model, row.input_ids, row.inputs)
        for column in [c for c, t in enumerate(row.input_ids) if t == LATENT and method.keys.thoughts != "pause"]:
            hidden = layers_of(model, embeds[:column])[-1][-1]
            embeds[column] = hidden if projection is None else projection(hidden)
        student = layers_of(model, embeds)
        spoken = [*tokens.prompt, *[t for step in tokens.steps for t in step], *tokens.answer]
        teacher = layers_of(model, embedded(model, spoken, row.inputs))
        for who, ids, hidden, n_prompt in (
            ("student", row.input_ids, student[-1], len(row.input_ids) - len(tokens.answer)),
            ("teacher", spoken, teacher[-1], len(tokens.prompt)),
        ):
            written[who] += [(model.lm_head(hidden[c - 1]), ids[c]) for c in range(n_prompt, len(ids))]
        before_answer = -len(tokens.answer)  # the announcing token, the first of the answer, stands there
        pairs = [(s[before_answer], t[before_answer].detach()) for s, t in zip(student, teacher, strict=True)]
        distances.append(torch.stack([smooth_l1(s, t) / t.std() for s, t in pairs]).mean())

    def cross_entropy(who: str) -> Tensor:
        logits, labels = zip(*written[who], strict=True)
        return F.cross_entropy(torch.stack(logits), torch.tensor(labels))

    of_teacher, of_student, of_distance = weights
    distance = torch.stack(distances).mean()
    return of_teacher * cross_entropy("teacher") + of_student * cross_entropy("student") + of_distance * distance


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["internvl", "qwen2"])
@pytest.mark.parametrize(
    ("weights", "filler", "more"),
    [
        ((1.0, 1.0, 1.0), None, {}),
        ((0.5, 2.0, 20.0), 1, {"projection": "mlp", "pad_latent_to_max": True}),
        ((0.0, 0.0, 1.0), None, {"thoughts": "pause"}),
        ((1.0, 1.0, 1.0), 1, {"projection": "mlp", "jacobi_iterations": 4}),  # as many as thoughts: the same
    ],
)
def test_loss_and_gradients(name, weights, filler, more, checkpointing):
    keys = dict(zip(("teacher_weight", "student_weight", "distillation_weight"), weights, strict=True))
    method = make_method("codi", coconut=more, codi=keys)
    expected, model, calls = MODELS[name]().double(), MODELS[name]().double(), []
    own = method.projection(expected)
    loss = reference(method, expected, own, name, weights, filler)
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
        ({"advance_when_accuracy": 0.9}, {}, "codi but coconut.advance_when_accuracy is set"),
        ({"uniform_prob": 0.5}, {}, "codi but coconut.uniform_prob is 0.5"),
        ({"thoughts": "borrowed"}, {}, "codi but coconut.thoughts is borrowed"),
        ({"c_thought": 0}, {}, "codi but coconut.c_thought is 0"),
        ({}, {"student_weight": 0, "distillation_weight": 0}, "nothing would teach the student"),
    ],
)
def test_what_makes_no_sense_is_refused(coconut, codi, says):
    with pytest.raises(ValueError, match=says):
        make_method("codi", coconut=coconut, codi=codi)


def test_a_first_stage_that_is_the_last_is_taken():
    assert make_method("codi", coconut={"first_stage": 3}).schedule.first_stage == 3
