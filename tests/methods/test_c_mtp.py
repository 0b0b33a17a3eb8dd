"""C-MTP's loss and gradients, and its thoughts at inference, written out row by row in plain PyTorch.

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
from torch import Tensor, nn

from multicoco.curriculum import ExampleTokens
from multicoco.errors import UserError
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


def states_of(heads: nn.Sequential, hidden: Tensor) -> list[Tensor]:
    """Of a hidden state (D,) one state (D,) for each word."""
    inner, _, outer = heads
    return [*F.linear(F.gelu(F.linear(hidden, inner.weight, inner.bias)), outer.weight, outer.bias).split(len(hidden))]


def reference(model, heads: nn.Sequential, name: str, stage: int, weight: float, filler: int | None) -> Tensor:
    method, examples = make_method("c_mtp"), make_examples(name)
    words, said = [], []
    for i, (row, tokens) in enumerate(zip(make_rows(method, name, stage), examples, strict=True)):
        if i == filler:
            continue
        own = alone(model, row.input_ids, row.inputs)
        # the second latent step, which is the last, stands for all steps from the second on
        groups = [*tokens.steps[:1], [*chain.from_iterable(tokens.steps[1:])]]
        parts = [groups[group][start:end] for group, start, end in STRETCHES[stage][i]]
        for column, part in zip(own.latent, parts, strict=True):
            own.embeds[column] = model.get_input_embeddings()(torch.tensor(part)).mean(0)
        hidden = own.layers()[-1]
        words += [(model.lm_head(hidden[c]), label) for c, label in enumerate(row.labels[1:]) if label != -100]
        for column, part in zip(own.latent, parts, strict=True):
            states = states_of(heads, hidden[column - 1])
            whole = [*part, *[LATENT] * (len(states) - len(part))]  # after the last word, that there is none
            said += [(model.lm_head(state), word) for state, word in zip(states, whole, strict=True)]

    def cross_entropy(chosen: list[tuple[Tensor, int]]) -> Tensor:
        logits, labels = zip(*chosen, strict=True)
        return F.cross_entropy(torch.stack(logits), torch.tensor(labels))

    return cross_entropy(words) + weight * cross_entropy(said)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "stage", "weight", "filler", "n_words"),
    [
        ("internvl", 1, 1.0, None, 2),
        ("internvl", 3, 0.5, 1, 4),
        ("qwen2", 3, 2.0, None, 3),
        ("qwen2_5_vl", 3, 2.0, 1, 2),
    ],
)
def test_loss_and_gradients(name, stage, weight, filler, n_words, checkpointing):
    method = make_method("c_mtp", c_mtp={"weight": weight, "words": n_words})
    expected, model, calls = MODELS[name]().double(), MODELS[name]().double(), []
    reasoner = make_reasoner(method, model).train()
    own = method.projection(expected)
    loss = reference(expected, own.heads, name, stage, weight, filler)
    loss.backward()
    reasoner.decoder.register_forward_hook(lambda *_: calls.append(1))
    if checkpointing:
        checkpoint_activations(model)
    output = training_loss(method, reasoner, make_rows(method, name, stage, filler), stage)
    output.backward()
    assert len(calls) == 1 == method.passes(stage)
    torch.testing.assert_close(output, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)
    assert_same_gradients(reasoner.thought_source.projection, gradients(own), GRADIENT_TOLERANCE)


@pytest.mark.parametrize("name", ["internvl", "qwen2"])
def test_a_thought_at_inference_is_the_mean_embedding_of_the_words_that_are_said(name):
    method, model = make_method("c_mtp", c_mtp={"words": 3}), MODELS[name]().double()
    reasoner, lengths = make_reasoner(method, model), set()
    words = reasoner.thought_source.projection

    def said(hidden: Tensor) -> Tensor:
        ids = [int(model.lm_head(state).argmax()) for state in states_of(words.heads, hidden)]
        ids = [ids[0], *[word for word in ids[1:] if word != words.nothing]]
        lengths.add(len(ids))
        return model.get_input_embeddings()(torch.tensor(ids)).mean(0)

    rows = make_rows(method, name, 3)[:1]
    with torch.no_grad():
        own = alone(model, rows[0].input_ids, rows[0].inputs)
        first = states_of(words.heads, own.layers(own.latent[0])[-1][-1])
        words.nothing = int(model.lm_head(first[2]).argmax())  # so that the first thought is of fewer
        thoughts = torch.stack(own.think(said))
        batch = {"input_ids": torch.tensor([rows[0].input_ids]), **rows[0].inputs}
        passes = reasoner.run_passes(attention_mask=torch.ones_like(batch["input_ids"]), **batch)
    torch.testing.assert_close(passes.thoughts[0], thoughts, rtol=1e-5, atol=1e-6)
    assert len(thoughts) == 4 and min(lengths) < 3


def test_a_batch_without_thoughts_has_the_language_models_loss():
    method, model = make_method("c_mtp"), MODELS["llama"]().double()
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
    fed = [row[row.any(-1)] for row in thoughts]  # 0 in the columns where only other rows have one
    assert [len(row) for row in fed] == [4, 2, 0, 4]
    torch.testing.assert_close(fed[0][1], table[steps[0][1:]].mean(0))


def test_thoughts_are_generated_at_inference():
    method = make_method("c_mtp")
    assert [method.prompt_passes(stage) for stage in (0, 1, 2, 3)] == [1, 3, 5, 5]
    assert [method.passes(stage) for stage in (0, 1, 2, 3)] == [1, 1, 1, 1]


def test_training_is_the_same_whatever_iterations_make_the_thoughts_at_inference():
    losses = []
    for keys in ({}, {"jacobi_iterations": 3}):
        method = make_method("c_mtp", coconut=keys)
        reasoner = make_reasoner(method, MODELS["llama"]().double()).train()
        losses.append(training_loss(method, reasoner, make_rows(method, "llama", 3), 3))
    assert torch.equal(*losses) and method.prompt_passes(3) == 4


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
        ({"projection": "linear"}, "method is c_mtp but coconut.projection is linear"),
        ({"norm": "embedding"}, "method is c_mtp but coconut.norm is embedding"),
        ({"gradient_passes": 1}, "method is c_mtp but coconut.gradient_passes is 1"),
        ({"pad_latent_to_max": True}, "method is c_mtp but coconut.pad_latent_to_max is true"),
    ],
)
def test_what_makes_no_sense_is_refused(keys, says):
    with pytest.raises(ValueError, match=says):
        make_method("c_mtp", coconut=keys)


@pytest.mark.parametrize(("uniform_prob", "stage"), [(0.0, 2), (0.5, 0)])
def test_a_stretch_of_more_tokens_than_there_are_words_is_refused_before_a_run(uniform_prob, stage):
    example = ExampleTokens([1], [[3, 4], [5, 6, 7, 8, 9]], [6])
    for words in (2, 3):
        method = make_method("c_mtp", coconut={"uniform_prob": uniform_prob}, c_mtp={"words": words})
        if words == 2:
            with pytest.raises(UserError, match=r"stand for 3 tokens .* and c_mtp\.words is 2: raise it to 3"):
                method.extent(example, stage)  # as lengths are measured, at the start
        else:
            method.extent(example, stage)
