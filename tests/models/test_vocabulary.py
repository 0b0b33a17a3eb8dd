import math

import pytest
import torch
from transformers import GenerationConfig

from multicoco.errors import UserError
from multicoco.models.backbone import load_backbone
from multicoco.models.vocabulary import LATENT_TOKENS, add_latent_tokens


def embeddings(backbone):
    return backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings().weight


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocab_size", [400, None])  # room for new tokens, or none
def test_latent_tokens_start_as_a_known_token_on_both_sides(text_model, tmp_path, tied, vocab_size):
    backbone = load_backbone(text_model(tmp_path, tied, vocab_size))
    known = backbone.tokenizer.convert_tokens_to_ids("<|im_start|>")
    before = [weight[known].clone() for weight in embeddings(backbone)]
    others = [weight[:known].clone() for weight in embeddings(backbone)]
    add_latent_tokens(backbone, "<|im_start|>")
    ids = backbone.tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS))
    assert [backbone.latent_tokens.start, backbone.latent_tokens.latent, backbone.latent_tokens.end] == ids
    for weight, expected, rest in zip(embeddings(backbone), before, others, strict=True):
        assert all(torch.equal(weight[i], expected) for i in ids)
        assert torch.equal(weight[:known], rest)
    assert (embeddings(backbone)[0] is embeddings(backbone)[1]) == tied
    expected_size = vocab_size or -(-len(backbone.tokenizer) // 64) * 64
    assert backbone.model.config.vocab_size == len(embeddings(backbone)[0]) == expected_size


def test_a_checkpoint_that_has_latent_tokens_is_left_alone(tiny, tmp_path):
    backbone = load_backbone(str(tiny))
    add_latent_tokens(backbone)
    with torch.no_grad():
        embeddings(backbone)[0][backbone.latent_tokens.latent] += 1  # as training would
    backbone.save_pretrained(tmp_path)
    again = load_backbone(str(tmp_path))
    saved = embeddings(again)[0].clone()
    add_latent_tokens(again)
    assert again.latent_tokens == backbone.latent_tokens
    assert torch.equal(embeddings(again)[0], saved) and torch.equal(saved, embeddings(backbone)[0])
    assert len(again.tokenizer) == len(backbone.tokenizer)


def test_a_latent_token_is_one_control_token_and_the_rest_keep_their_ids(tiny):
    backbone = load_backbone(str(tiny))
    control = set(backbone.tokenizer.all_special_ids)
    add_latent_tokens(backbone)
    assert backbone.tokenizer.encode("<|latent|>", add_special_tokens=False) == [backbone.latent_tokens.latent]
    assert control < set(backbone.tokenizer.all_special_ids)
    assert backbone.tokenizer.decode([backbone.latent_tokens.latent], skip_special_tokens=True) == ""


def test_an_unknown_initial_token_is_refused(tiny):
    with pytest.raises(UserError, match=r"latent_init_token.*<<"):
        add_latent_tokens(load_backbone(str(tiny)), "<<")


def test_half_of_the_latent_tokens_is_refused(tiny):
    backbone = load_backbone(str(tiny))
    backbone.tokenizer.add_tokens([LATENT_TOKENS[0]])
    with pytest.raises(UserError, match="not a MultiCoCo checkpoint"):
        add_latent_tokens(backbone)


def loss(model, head_rows):
    """Of a head that is cut to so many rows."""
    ids = torch.arange(3, 60)[None]
    logits = model(input_ids=ids).logits[0, :-1, :head_rows].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_rows_past_the_tokenizer_change_no_loss_by_more_than_said(text_model, tmp_path, tied):
    backbone = load_backbone(text_model(tmp_path, tied, vocab_size=None))
    model = backbone.model
    for parameter in model.parameters():
        parameter.normal_(std=0.5)
    if not tied:
        model.lm_head.weight[:, 0] -= 3  # so that logits are far from 0, as GPT-2's are
    before, words = loss(model, None), len(backbone.tokenizer)
    add_latent_tokens(backbone)
    tokens, rows = len(backbone.tokenizer), len(embeddings(backbone)[0])
    with_words, with_latents, after = (loss(model, n) for n in (words, tokens, None))
    assert rows == 320 and with_words == pytest.approx(before, rel=1e-5)
    assert 0 < after - with_latents < math.log1p((rows - tokens) / words)


@pytest.mark.parametrize("vocab_size", [400, None])
def test_rows_past_the_tokenizer_are_never_generated(text_model, tmp_path, vocab_size):
    backbone = load_backbone(text_model(tmp_path, vocab_size=vocab_size))
    for add in (False, True):
        if add:
            add_latent_tokens(backbone)
        known, rows = len(backbone.tokenizer), len(embeddings(backbone)[1])
        assert (backbone.model.generation_config.suppress_tokens or []) == list(range(known, rows))
    with torch.no_grad():
        embeddings(backbone)[1][:] = 0
        embeddings(backbone)[1][known:] = embeddings(backbone)[1].new_tensor(5.0)
        backbone.model.model.norm.weight[:] = 0
        backbone.model.model.norm.register_forward_hook(lambda module, args, out: torch.ones_like(out))
    new = backbone.model.generate(
        torch.tensor([[5, 6]]),
        generation_config=GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=2),
    )
    assert new.shape[1] > 2 and new.max() < known


def test_a_checkpoints_own_number_of_rows_can_be_had(text_model, tmp_path):
    backbone = load_backbone(text_model(tmp_path, vocab_size=None))
    rows = len(backbone.tokenizer) + 3
    add_latent_tokens(backbone, n_rows=rows)
    assert len(embeddings(backbone)[0]) == len(embeddings(backbone)[1]) == rows == len(backbone.tokenizer)
    few = load_backbone(text_model(tmp_path / "few", vocab_size=None))
    with pytest.raises(UserError, match=f"embeddings have {rows - 1} rows"):
        add_latent_tokens(few, n_rows=rows - 1)


def test_a_checkpoint_without_padded_rows_loads_and_stays_so(text_model, tmp_path):
    backbone = load_backbone(text_model(tmp_path / "model", vocab_size=None))
    add_latent_tokens(backbone, n_rows=len(backbone.tokenizer) + 3)
    backbone.save_pretrained(tmp_path / "old")
    again = load_backbone(str(tmp_path / "old"))
    add_latent_tokens(again)
    assert len(embeddings(again)[0]) == len(again.tokenizer) == len(backbone.tokenizer)


def test_latent_tokens_of_another_models_tokenizer_are_refused(text_model, tmp_path):
    path = text_model(
        tmp_path,
        vocab_size=None,
        change_tokenizer=lambda tokenizer: tokenizer.add_special_tokens(
            {"additional_special_tokens": list(LATENT_TOKENS)}
        ),
    )
    with pytest.raises(UserError, match=r"latent tokens are .* rows"):
        add_latent_tokens(load_backbone(path))


def test_new_rows_are_the_same_bits_in_every_process(text_model, tmp_path, monkeypatch):
    """A fast tokenizer lists its vocabulary in another order in each."""
    path, weights = text_model(tmp_path, True, None), []
    for order in (list, lambda items: list(reversed(items)), lambda items: sorted(items, key=hash)):
        backbone = load_backbone(path)
        listed = dict(order(list(backbone.tokenizer.get_vocab().items())))
        monkeypatch.setattr(type(backbone.tokenizer), "get_vocab", lambda self, listed=listed: listed)
        add_latent_tokens(backbone)
        monkeypatch.undo()
        weights.append(embeddings(backbone)[0].clone())
    assert all(torch.equal(weights[0], other) for other in weights[1:])
