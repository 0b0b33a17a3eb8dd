"""Interventions on a tiny random model: what changes nothing is bit for bit the same, the rest equals a recomputation.

Models run in fp64; transformers computes norms and angles in fp32, so recomputations agree to fp32's rounding.
"""

import pytest
import torch
from reference import EOS, LATENT, PAD, qwen2
from transformers import GenerationConfig

from multicoco.interventions import order_of, parse
from multicoco.latent.generate import generate_after, log_likelihoods
from multicoco.latent.interventions import UNTOUCHED, Intervened, replacement, unit_noise
from multicoco.latent.reasoner import LatentReasoner

pytestmark = pytest.mark.usefixtures("one_thread")
K, START, END = 3, 50, 51
CONFIG = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=EOS, pad_token_id=PAD)


@pytest.fixture(scope="module")
def reasoner(one_thread) -> LatentReasoner:
    model = qwen2(seed=1).double().eval()
    model.lm_head.weight.data *= 20  # spreads the logits, so that rounding cannot decide a token
    for layer in model.model.layers:  # attention that looks at some columns more than at others
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.data *= 20
    return LatentReasoner(model, LATENT)


@pytest.fixture(scope="module")
def prompts() -> dict[str, torch.Tensor]:
    """Two questions of K thoughts and one of a thought fewer, left-padded."""
    rows = [[1, 2, 3, 4, START, *[LATENT] * n, END] for n in (K, K - 1)] + [[7, 8, START, *[LATENT] * K, END]]
    rows[1][0:4] = [9, 10, 11, 12]
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def answer(reasoner, prompts, intervened=UNTOUCHED):
    """Generated tokens, and the log-probabilities of a text of two tokens after a given one."""
    with torch.no_grad():
        passes = reasoner.run_passes(**prompts, n_passes=K + 1 + intervened.hides, intervened=intervened)
        texts = torch.tensor([[20, 5, 6]] * 3)
        labels = torch.tensor([[-100, 5, 6]] * 3)
        measured = log_likelihoods(reasoner.model, passes, texts, labels)
        return generate_after(reasoner.model, passes, CONFIG), measured


@pytest.fixture(scope="module")
def own(reasoner, prompts) -> list[torch.Tensor]:
    with torch.no_grad():
        return reasoner.run_passes(**prompts).thoughts_by_row()


def material(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def noise() -> torch.Tensor:
    return material([unit_noise(K, 32, bits).double() for bits in (1, 2, 3)])


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_recorded_thoughts_are_what_was_fed(reasoner, prompts, own):
    assert [row.shape for row in own] == [(K, 32), (K - 1, 32), (K, 32)]
    thoughts = reasoner(**prompts).thoughts
    torch.testing.assert_close(thoughts[0], own[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(thoughts[1, 1:], own[1], rtol=1e-6, atol=1e-6)  # its first one is the second column


@pytest.mark.parametrize(
    "spec", ["transplant", "permute", "only(2, transplant)", "perturb(0)", "only(9, zero)", "cut(3)"]
)
def test_what_changes_nothing_is_bit_for_bit_the_same(reasoner, prompts, own, spec):
    intervention = parse(spec)
    given = noise() if spec == "perturb(0)" else material(own)
    assert same(answer(reasoner, prompts, Intervened(replacement(intervention, given))), answer(reasoner, prompts))


@pytest.mark.parametrize("spec", ["zero", "first", "noise", "perturb(1)", "permute", "only(1, zero)", "only(2, zero)"])
def test_what_is_fed_is_what_a_recomputation_is_fed(reasoner, prompts, own, spec):
    """Every thought again from the whole sequence, replaced in plain PyTorch."""
    intervention = parse(spec)
    given = noise() if intervention.kind in ("noise", "perturb") else material([row.flip(0) for row in own])
    tokens, measured = answer(reasoner, prompts, Intervened(replacement(intervention, given)))
    untouched = answer(reasoner, prompts)[1]
    for row in range(3):
        ids = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]
        embeds = reasoner.model.get_input_embeddings()(ids)[None].detach()
        first = None
        for k, column in enumerate((ids == LATENT).nonzero()[:, 0].tolist()):
            h = reasoner.model.model(inputs_embeds=embeds[:, :column]).last_hidden_state[0, -1].detach()
            first = h if first is None else first
            kind = intervention.fed.kind
            if intervention.kind == "only" and k != intervention.number - 1:
                fed = h
            elif kind == "zero":
                fed = torch.zeros_like(h)
            elif kind == "first":
                fed = first
            elif kind == "permute":
                fed = given[row, k]
            elif kind == "perturb":
                fed = h + h.norm() * given[row, k]
            else:
                fed = h.mean() + (h - h.mean()).norm() * given[row, k]
                torch.testing.assert_close(fed.norm(), h.norm(), rtol=1e-5, atol=0)
                torch.testing.assert_close(fed.mean(), h.mean(), rtol=0, atol=1e-6)
            embeds[0, column] = fed
        check_row(reasoner.model, embeds, torch.arange(len(ids))[None], tokens[row], measured[row])
    assert (measured - untouched).abs().min() > 1e-4  # it does something to each


def check_row(model, embeds, positions, tokens, measured):
    """Greedy decoding and the likelihood of a text, from the whole sequence each time."""

    def logits(new: list[int]) -> torch.Tensor:
        later = positions[:, -1:] + torch.arange(1, len(new) + 1)
        sequence = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([new], dtype=torch.long))], dim=1)
        with torch.no_grad():
            return model(inputs_embeds=sequence, position_ids=torch.cat([positions, later], 1)).logits[
                0, embeds.shape[1] - 1 :
            ]

    new: list[int] = []
    while len(new) < 4 and EOS not in new:
        new.append(int(logits(new)[-1].argmax()))
    assert tokens[: len(new)].tolist() == new
    chosen = logits([20, 5]).log_softmax(-1)[[1, 2], [5, 6]].sum()
    torch.testing.assert_close(measured, chosen, rtol=1e-5, atol=1e-5)


def test_hidden_thoughts_are_columns_that_are_gone_with_their_positions_kept(reasoner, prompts):
    tokens, measured = answer(reasoner, prompts, Intervened(hides=True))
    for row in range(3):
        ids = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]
        seen = (ids != LATENT).nonzero()[:, 0]
        embeds = reasoner.model.get_input_embeddings()(ids[seen])[None].detach()
        check_row(reasoner.model, embeds, seen[None], tokens[row], measured[row])
    assert (measured - answer(reasoner, prompts)[1]).abs().min() > 1e-4


@pytest.mark.parametrize("kernel", ["reference", "cpu", "flash"])
def test_each_row_hides_its_thoughts_from_where_they_end(kernel):
    """Rows whose thoughts end in different columns: each is as if it were alone."""
    reasoner = LatentReasoner(qwen2().double().eval(), LATENT, kernel)
    ids = torch.tensor([[1, 2, LATENT, LATENT, LATENT, 3, 4, 5], [6, 7, LATENT, 8, 9, 10, 11, 12]])
    with torch.no_grad():
        hidden = reasoner.run_passes(ids, torch.ones_like(ids), intervened=Intervened(hides=True)).hidden
    for row in range(2):
        seen = (ids[row] != LATENT).nonzero()[:, 0]
        expected = reasoner.model.model(ids[row : row + 1, seen], position_ids=seen[None]).last_hidden_state
        torch.testing.assert_close(hidden[row : row + 1, seen], expected, rtol=1e-5, atol=1e-6)


def test_a_permuted_order_is_another_answer(reasoner, prompts, own):
    given = material([row[order_of(len(row), 4)] for row in own])
    assert not same(
        answer(reasoner, prompts, Intervened(replacement(parse("permute"), given))), answer(reasoner, prompts)
    )


def test_hiding_is_for_evaluation_and_needs_something_behind(reasoner):
    ids = torch.tensor([[1, LATENT]])
    with pytest.raises(ValueError, match="at evaluation only"):
        reasoner.run_passes(ids, torch.ones_like(ids), intervened=Intervened(hides=True))
    with torch.no_grad(), pytest.raises(ValueError, match="nothing follows it"):
        reasoner.run_passes(ids, torch.ones_like(ids), intervened=Intervened(hides=True))


@pytest.mark.parametrize("spec", ["zero", "first", "noise", "perturb(1)", "permute", "only(2, zero)", "mask"])
def test_no_pass_waits_for_the_device(spec):
    """On the meta device there are no values to wait for: whatever reads one fails."""
    with torch.device("meta"):
        reasoner = LatentReasoner(qwen2(), LATENT, "reference").eval()
    ids = torch.ones(2, 12, dtype=torch.long)
    ids[:, 5:8] = LATENT
    on_host = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    moved = {key: x.to("meta") for key, x in on_host.items()}
    given = torch.ones(2, 3, 32, device="meta")
    with torch.no_grad():
        intervened = Intervened(replacement(parse(spec), given), hides=spec == "mask")
        assert reasoner.run_passes(**moved, intervened=intervened, on_host=on_host).thoughts.shape == (2, 3, 32)
