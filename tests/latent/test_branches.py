"""Texts that share columns against each text by itself: transformers' own forward over its prompt and it, in fp64."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen2Config

from multicoco.latent.branches import Tree
from multicoco.latent.generate import log_likelihoods
from multicoco.latent.reasoner import LatentReasoner

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
SIZES |= {"num_hidden_layers": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
CAPS = {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5, "initializer_range": 0.2}
CONFIGS = {
    "full": Qwen2Config(**SIZES),
    "window": MistralConfig(**SIZES, sliding_window=4),
    "capped": Gemma2Config(**SIZES, **CAPS, sliding_window=4, head_dim=8, query_pre_attn_scalar=5),
}
PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [10, 11, 12]]  # of different lengths
TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4)


@pytest.fixture(scope="module", params=CONFIGS)
def models(request) -> tuple:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.float64).eval()
    return model, LatentReasoner(copy.deepcopy(model), None)


@settings(max_examples=12, deadline=None)
@given(texts=st.tuples(TEXTS, TEXTS), n_given=st.integers(0, 2))
def test_likelihoods_of_texts_that_begin_alike_are_those_of_each_alone(models, texts, n_given):
    model, reasoner = models
    rounding = 1e-6 if model.config.model_type == "gemma2" else 1e-9  # whose eager attention has its softmax in fp32
    length = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    with torch.no_grad():
        passes = reasoner.run_passes(ids, mask)
    input_ids = torch.zeros(2, 4, 5, dtype=torch.long)
    labels = torch.full_like(input_ids, -100)
    for row, of_row in enumerate(texts):
        for place, text in enumerate(of_row):
            input_ids[row, place, : len(text)] = torch.tensor(text)
            labels[row, place, n_given : len(text)] = torch.tensor(text[n_given:])
    measured = log_likelihoods(reasoner.model, passes, input_ids, labels)
    assert measured.shape == (2, 4) and measured.dtype == torch.float64
    for row, of_row in enumerate(texts):
        for place, text in enumerate(of_row):
            with torch.no_grad():
                own = model(torch.tensor([PROMPTS[row] + text])).logits[0, len(PROMPTS[row]) - 1 : -1].log_softmax(-1)
            wanted = sum(own[i, token] for i, token in enumerate(text) if i >= n_given)
            torch.testing.assert_close(
                measured[row, place], torch.as_tensor(wanted, dtype=torch.float64), rtol=rounding, atol=0
            )
        assert not measured[row, len(of_row) :].any()


@given(texts=st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=5))
def test_a_column_stands_for_what_texts_begin_with_and_sees_no_more_than_that(texts):
    tree = Tree()
    columns = [tree.add(text) for text in texts]
    for text, of_text in zip(texts, columns, strict=True):
        assert len(of_text) == len(text)
        for depth, column in enumerate(of_text):
            assert tree.depth[column] == depth and tree.comes_after[column] == of_text[: depth + 1]
            assert [tree.tokens[before] for before in of_text[1 : depth + 1]] == text[:depth]
    beginnings = {tuple(text[:n]) for text in texts for n in range(1, len(text))}
    assert len(tree.tokens) == 1 + len(beginnings)
