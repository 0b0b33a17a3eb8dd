"""Controls against forward passes that recompute the whole sequence (tests/reference.py).

Tolerances: as in test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

import pytest
import torch
from reference import LATENT, MODELS, PAD, assert_same_gradients, coconut_logits, coconut_loss, gradients, llama, qwen2
from torch import Tensor
from transformers import GPT2Config, GPT2Model

from multicoco.latent.controls import GaussianThoughts, another_rows, last_norm
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.checkpointing import checkpoint_activations

LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5


def batch_of(rows: list[list[int]], n_labelled: int = 3) -> dict[str, Tensor]:
    """Rows aligned at their first latent column, their last words labelled."""
    first = max(row.index(LATENT) for row in rows)
    left = [first - row.index(LATENT) for row in rows]
    length = max(pad + len(row) for pad, row in zip(left, rows, strict=True))
    input_ids, labels = torch.full((len(rows), length), PAD), torch.full((len(rows), length), -100)
    for i, (pad, row) in enumerate(zip(left, rows, strict=True)):
        input_ids[i, pad : pad + len(row)] = torch.tensor(row)
        labels[i, pad + len(row) - n_labelled : pad + len(row)] = torch.tensor(row[-n_labelled:])
    return {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long(), "labels": labels}


def text_batch() -> dict[str, Tensor]:
    return batch_of([[5, 6, 7, LATENT, LATENT, LATENT, 8, 9, 1], [3, LATENT, 4, 2, 2], [9, 9, LATENT, LATENT, 7, 5, 1]])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_a_pause_in_one_pass_is_one_in_a_pass_for_each_thought(name, checkpointing):
    batch, calls = text_batch(), []
    one, several = (MODELS[name]().double() for _ in range(2))
    table = several.get_input_embeddings().weight
    reasoners = [
        LatentReasoner(one, None),
        LatentReasoner(several, LATENT, thoughts=lambda hidden, k: table[LATENT].expand_as(hidden)),
    ]
    losses = []
    for reasoner in reasoners:
        reasoner.decoder.register_forward_hook(lambda *_: calls.append(1))
        if checkpointing:
            checkpoint_activations(reasoner.train().model)
        loss = reasoner(**batch).loss
        loss.backward()
        losses.append(loss)
    assert len(calls) == 1 + 4
    torch.testing.assert_close(losses[0], losses[1], rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(one, gradients(several), GRADIENT_TOLERANCE)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_detached_thoughts_are_constants(name):
    batch, expected, model = text_batch(), MODELS[name]().double(), MODELS[name]().double()
    loss = coconut_loss(expected, **batch, thought=Tensor.detach)
    loss.backward()
    output = LatentReasoner(model, LATENT, gradient_passes=0)(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)
    through_time = MODELS[name]().double()
    coconut_loss(through_time, **batch).backward()
    with pytest.raises(AssertionError):
        assert_same_gradients(model, gradients(through_time), 1000 * GRADIENT_TOLERANCE)


def test_borrowed_thoughts_are_those_that_another_row_has_alone():
    rows = [[5, 6, 7, LATENT, LATENT, LATENT, 8, 9, 1], [3, LATENT, 4, 2, 2], [9, 9, LATENT, LATENT, 7, 5, 1]]
    donors = [[9, 9, LATENT, LATENT, LATENT], [5, 6, 7, LATENT], [3, LATENT, LATENT]]
    expected, model = qwen2().double(), qwen2().double()
    decoder, table = expected.get_decoder(), expected.get_input_embeddings()

    def hidden(embeds: list[Tensor]) -> Tensor:
        return decoder(inputs_embeds=torch.stack(embeds)[None]).last_hidden_state[0]

    loss = 0.0
    for row, donor in zip(rows, donors, strict=True):
        before = [*table(torch.tensor(donor[: donor.index(LATENT)]))]
        thoughts: list[Tensor] = []
        for _ in range(donor.count(LATENT)):
            thoughts.append(hidden([*before, *thoughts])[-1])
        ids, first = torch.tensor(row), row.index(LATENT)
        embeds = [*table(ids[:first]), *thoughts, *table(ids[first + len(thoughts) :])]
        logits = expected.lm_head(hidden(embeds))[-4:-1]
        loss = loss + torch.nn.functional.cross_entropy(logits, ids[-3:], reduction="sum") / 9
    loss.backward()

    batch = batch_of(rows + donors)
    batch["labels"][3:] = -100
    output = LatentReasoner(model, LATENT, thoughts=another_rows)(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)


def with_noise(model) -> LatentReasoner:
    return LatentReasoner(model, None, fixed_thoughts=GaussianThoughts(LATENT, 3, model.get_decoder()))


def test_noise_is_run_in_one_pass_over_vectors_drawn_by_row():
    batch, calls, model = text_batch(), [], llama().double()
    seeds = torch.tensor([4, 2**62, 9])
    reasoner = with_noise(model)
    reasoner.decoder.register_forward_hook(lambda *_: calls.append(1))
    logits = reasoner(**batch, seeds=seeds, return_logits=True).logits
    assert len(calls) == 1
    drawn = [torch.randn(3, 32, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    noise = model.model.norm(torch.stack(drawn).double())
    column = iter(range(3))

    def thought(hidden: Tensor) -> Tensor:
        return noise[:, next(column)]

    expected = coconut_logits(model, batch["input_ids"], batch["attention_mask"], thought=thought)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-5, atol=1e-6)


def test_noise_is_the_same_in_any_batch_and_another_with_another_seed():
    batch, reasoner = text_batch(), with_noise(llama().double())
    loss = lambda rows, seeds: reasoner(  # noqa: E731
        **{key: value[rows] for key, value in batch.items()}, seeds=torch.tensor(seeds), loss_divisor=1.0
    ).loss.item()
    together = loss([0, 1, 2], [4, 5, 6])
    assert loss([0], [4]) + loss([2, 1], [6, 5]) == pytest.approx(together, rel=1e-6)
    assert loss([0, 1, 2], [4, 5, 7]) != pytest.approx(together, rel=1e-6)
    with pytest.raises(ValueError, match="seeds"):
        reasoner(**batch)


def test_noise_has_the_mean_and_the_norm_of_hidden_states():
    torch.manual_seed(0)
    decoder = GPT2Model(GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=2, n_positions=64)).double()
    assert last_norm(decoder) is decoder.ln_f
    with torch.no_grad():
        decoder.ln_f.weight.uniform_(0.5, 3)
        decoder.ln_f.bias.normal_()
    hidden = decoder(torch.randint(0, 64, (200, 10))).last_hidden_state[:, -1]
    ids = torch.full((400, 2), LATENT)
    noise = GaussianThoughts(LATENT, 2, decoder)(hidden.new_zeros(400, 2, 64), ids, torch.arange(400)).flatten(0, 1)
    assert noise.norm(dim=-1).mean() == pytest.approx(hidden.norm(dim=-1).mean().item(), rel=0.1)
    assert (noise.mean(0) - decoder.ln_f.bias).abs().max() < 5 * 3 / 800**0.5
    assert not noise.requires_grad


def test_a_model_without_a_last_norm_has_no_noise():
    with pytest.raises(ValueError, match="norm at the end"):
        last_norm(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", MODELS)
def test_the_last_norm_is_where_hidden_states_come_from(name):
    model, seen = MODELS[name](), []
    last_norm(model.get_decoder()).register_forward_hook(lambda module, args, out: seen.append(out))
    hidden = model.get_decoder()(torch.tensor([[1, 2, 3]])).last_hidden_state
    assert len(seen) == 1 and torch.equal(seen[0], hidden)
