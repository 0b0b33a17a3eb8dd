"""What thoughts attend to, against weights computed by hand from each layer's input in a plain transformers model."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from multicoco.ask import attention as module
from multicoco.errors import UserError


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def weights_by_hand(decoder, embeds: Tensor) -> tuple[list[Tensor], Tensor]:
    """[T, T] of each layer, the mean over heads, in fp64; and the last hidden states [T, D]."""
    length = embeds.shape[0]
    out = decoder(inputs_embeds=embeds[None], use_cache=False, output_hidden_states=True)
    cos, sin = (table[0].double() for table in decoder.rotary_emb(embeds[None], torch.arange(length)[None]))
    found = []
    for layer, entering in zip(decoder.layers, out.hidden_states, strict=False):
        own, hidden = layer.self_attn, layer.input_layernorm(entering[0])
        q, k = (
            rotated(projection(hidden).double().view(length, -1, own.head_dim).transpose(0, 1), cos, sin)
            for projection in (own.q_proj, own.k_proj)
        )
        scores = q @ k.repeat_interleave(len(q) // len(k), dim=0).transpose(1, 2) / own.head_dim**0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        found.append(scores.masked_fill(future, -torch.inf).softmax(-1).mean(0))
    return found, out.last_hidden_state[0]


@torch.no_grad()
def test_attention_is_that_of_the_whole_sequence_computed_by_hand(asker, example, trained_home):
    seen = asker.attention(example.image, example.question, example.choices)
    folder = trained_home / "runs" / "run" / "checkpoints" / "epoch_0003" / "model"
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokens, inputs = asker.assembly.encoder(example, "reasoning")
    latent = asker.assembly.backbone.latent_tokens
    ids = torch.tensor([*tokens.prompt, *latent.block(4)])
    at_image = ids == model.config.image_token_id
    features = model.get_image_features(**inputs, return_dict=True).pooler_output
    embeds = model.get_input_embeddings()(ids).masked_scatter(at_image[:, None], features)
    columns = (ids == latent.latent).nonzero()[:, 0].tolist()
    for column in columns:  # a thought is the last hidden state of the column before it, over the whole sequence
        embeds[column] = weights_by_hand(model.get_decoder(), embeds)[1][column - 1]
    layers, _ = weights_by_hand(model.get_decoder(), embeds)
    rollout = torch.eye(len(ids), dtype=torch.float64)
    for layer in layers:  # from the first one on
        rollout = (0.5 * layer + 0.5 * torch.eye(len(ids))) @ rollout
    assert len(seen) == len(columns) == 4
    for one, column in zip(seen, columns, strict=True):
        assert one.share == pytest.approx(float(layers[-1][column, at_image].sum()), abs=1e-6)
        for found, expected in ((one.last, layers[-1]), (one.rollout, rollout)):
            torch.testing.assert_close(
                torch.tensor(found), expected[column, at_image].view(1, 3, 3).float(), rtol=1e-4, atol=1e-7
            )
    assert seen[0].last != seen[1].last
    # and the passes are as they were
    before = asker.ask(example.image, example.question, example.choices)
    assert asker.ask(example.image, example.question, example.choices).chances == before.chances


def test_several_pictures_and_none(asker, example):
    other = next(p for p in example.image.parent.iterdir() if p != example.image)
    two = asker.attention([example.image, other], example.question, latents=1)
    assert [len(two), len(two[0].last), len(two[0].rollout)] == [1, 2, 2]
    assert two[0].share == pytest.approx(sum(sum(map(sum, of)) for of in two[0].last)) and 0 < two[0].share < 1
    [none] = asker.attention(None, example.question, latents=1)
    assert (none.share, none.last, none.rollout) == (0, [], [])


def test_what_would_not_fit_is_said(asker, example, monkeypatch):
    monkeypatch.setattr(module, "_MOST_NUMBERS", 100)
    with pytest.raises(UserError, match="too many for the attention"):
        asker.attention(example.image, example.question)
