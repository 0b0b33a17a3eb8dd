"""What the head reads in thoughts is what the whole model says after them; how much thoughts differ, by definition."""

import math

import numpy as np
import pytest
import torch
from reference import IMAGE, IMAGE_TOKENS, LATENT, MODELS
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from multicoco.latent import lens
from multicoco.latent.head import logits_of
from multicoco.latent.lens import effective_rank, embedding_norms, mean_similarity, read_words
from multicoco.latent.reasoner import LatentReasoner

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": 64}
_GEMMA = {"head_dim": 8, "num_key_value_heads": 2}
OTHERS = {
    "gpt2": {},
    "opt": {"ffn_dim": 16},
    "phi": {},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 0.5},
}


def build(kind: str):
    """A model whose last norm, applied twice, would be told from once."""
    if kind in MODELS:
        model = MODELS[kind]()
    else:
        torch.manual_seed(0)
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = AutoConfig.for_model(kind, **{**SIZES, **special, **OTHERS[kind]})
        model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name or name == "lm_head.bias":
            parameter.data.uniform_(0.2, 3)
    return model.double().eval()


@pytest.mark.parametrize("kind", [*MODELS, *OTHERS])
@torch.no_grad()
def test_the_words_of_a_thought_are_those_that_the_model_would_say_after_it(kind):
    """The whole model over the whole sequence again for each thought, with whatever it does behind its layers."""
    model = build(kind)
    ids = torch.tensor([[IMAGE] * IMAGE_TOKENS + [3, 4, 5, LATENT, LATENT, 6, LATENT, 7]])
    inputs = {"pixel_values": torch.randn(1, 3, 56, 56).double()} if kind == "internvl" else {}
    reasoner = LatentReasoner(model, LATENT)
    passes = reasoner.run_passes(ids, torch.ones_like(ids), **inputs)
    columns = (ids[0] == LATENT).nonzero()[:, 0].tolist()
    words = torch.tensor([[[3, 9], [10, 3], [0, 63]]])
    reading = read_words(logits_of(model), passes.embeds[:, columns], words, top_k=5)

    embeds = model.get_input_embeddings()(ids)
    if inputs:
        features = model.get_image_features(**inputs, return_dict=True).pooler_output
        embeds = embeds.masked_scatter((ids == IMAGE)[..., None], features)
    for k, column in enumerate(columns):
        said = model(inputs_embeds=embeds[:, :column]).logits[0, -1].softmax(-1)
        order = said.argsort(descending=True)
        assert reading.top_ids[0, k].tolist() == order[:5].tolist()
        torch.testing.assert_close(reading.top_probabilities[0, k].double(), said[order[:5]], rtol=1e-4, atol=1e-6)
        assert reading.ranks[0, k].tolist() == [order.tolist().index(word) + 1 for word in words[0, k].tolist()]
        embeds[0, column] = model.get_decoder()(inputs_embeds=embeds[:, :column]).last_hidden_state[0, -1]


def test_equals_are_in_the_order_of_the_vocabulary_and_count_against_each_other():
    head = nn.Linear(4, 50, bias=False)
    nothing = read_words(head, torch.zeros(1, 1, 4), torch.tensor([[[0, 17, 49]]]), top_k=3)
    assert nothing.top_ids.tolist() == [[[0, 1, 2]]] and nothing.ranks.tolist() == [[[50, 50, 50]]]
    assert nothing.top_probabilities.flatten().tolist() == pytest.approx([1 / 50] * 3)
    head.weight.data = torch.randint(-2, 3, (50, 4)).float()
    thoughts = torch.randint(-2, 3, (6, 2, 4)).float()
    reading = read_words(head, thoughts, torch.zeros(6, 2, 0, dtype=torch.long), top_k=50)
    expected = head(thoughts).sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(reading.top_ids, expected) and reading.ranks.shape == (6, 2, 0)
    assert read_words(head, thoughts, torch.zeros(6, 2, 1).long(), top_k=99).top_ids.shape == (6, 2, 50)


def test_the_head_is_called_once_a_thought_and_nothing_waits_for_the_device():
    """On the meta device there are no values to wait for: whatever reads one fails."""
    head, calls = nn.Linear(8, 30, device="meta"), []
    head.register_forward_hook(lambda *_: calls.append(1))
    words = torch.zeros(3, 4, 2, dtype=torch.long, device="meta")
    assert read_words(head, torch.zeros(3, 4, 8, device="meta"), words, top_k=5).top_ids.shape == (3, 4, 5)
    assert len(calls) == 4


def test_embeddings_are_as_long_as_they_are_fed(monkeypatch):
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 3 * super().forward(ids)

    monkeypatch.setattr(lens, "_ROWS", 7)
    table = Scaled(20, 6)
    torch.testing.assert_close(embedding_norms(table, torch.arange(20)), 3 * table.weight.double().norm(dim=-1))


@pytest.mark.parametrize(("n", "width"), [(30, 8), (8, 30), (12, 12)])
def test_effective_rank_by_its_definition(n, width):
    matrix = torch.randn(n, width) @ torch.diag(0.5 ** torch.arange(width)).float() + 3
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    assert effective_rank(matrix) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_effective_rank_from_all_alike_to_all_different():
    direction = torch.randn(16)
    assert effective_rank(direction.expand(40, -1)) == pytest.approx(1, abs=1e-9)
    assert effective_rank(torch.randn(40, 1) * direction) == pytest.approx(1, abs=1e-5)  # of fp32's rounding
    assert effective_rank(torch.eye(16)[:5]) == pytest.approx(5)
    assert effective_rank(direction[None]) == pytest.approx(1)


@pytest.mark.parametrize("matrix", [torch.zeros(0, 4), torch.zeros(3, 4), torch.full((2, 2), float("nan"))])
def test_what_has_no_effective_rank(matrix):
    assert math.isnan(effective_rank(matrix)) and math.isnan(mean_similarity(matrix))


def test_mean_similarity_is_the_mean_over_pairs():
    vectors = torch.randn(9, 5) + 1
    pairs = [torch.cosine_similarity(vectors[i], vectors[j], dim=0) for i in range(9) for j in range(i)]
    assert mean_similarity(vectors) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)
    assert math.isnan(mean_similarity(vectors[:1]))
