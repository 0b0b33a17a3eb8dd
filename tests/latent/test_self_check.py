from types import SimpleNamespace

import pytest
import torch
from reference import IMAGE, IMAGE_TOKENS, LATENT, RESCALED, WINDOWS, internvl, qwen2, rescaled, windowed
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.qwen2 import modeling_qwen2

from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.self_check import self_check
from multicoco.latent.thoughts import Projected, Projection, hidden_state
from multicoco.latent.words import Words
from multicoco.models.families.text import PROVEN

ARCHITECTURES = (
    *("gpt2", "llama", "qwen2", "qwen3", "mistral", "phi", "phi3", "gemma", "olmo2", "smollm3", "gpt_neox", "opt"),
    *("qwen2_moe", "granite", "starcoder2"),
)


def texts(*lengths):
    torch.manual_seed(0)
    ids = [torch.randint(3, 60, (1, length)) for length in lengths]
    return [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids]


def lively(model):
    """With weights that make attention look at some positions more than at others, and biases that count."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1 or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def of_kind(kind, **options):
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "sliding_window": None,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(kind, **{**sizes, **options})
    return lively(AutoModelForCausalLM.from_config(config))


def test_each_kind_of_text_model_that_is_called_proven_is_one_of_these():
    assert {*ARCHITECTURES, *WINDOWS, *RESCALED} == PROVEN


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_the_passes_reproduce_is_taken(kind):
    self_check(LatentReasoner(of_kind(kind), LATENT, "reference"), texts(3, 40))


@pytest.mark.parametrize("kind", RESCALED)
def test_scaled_and_capped_logits_and_scores_are_taken_and_others_are_found(kind, monkeypatch):
    reasoner = LatentReasoner(lively(rescaled(kind)), LATENT)
    monkeypatch.setattr("multicoco.latent.self_check._EAGER_COLUMNS", 10)  # PyTorch's attention has no caps
    self_check(reasoner, texts(3, 30))
    monkeypatch.setattr("multicoco.latent.reasoner.logits_of", lambda model: model.get_output_embeddings())
    with pytest.raises(UserError, match=f"what the {kind} model computes"):
        self_check(reasoner, texts(3, 30))


def with_image(length):
    [example] = texts(length)
    example["input_ids"][0, 2 : 2 + IMAGE_TOKENS] = IMAGE
    return example | {"pixel_values": torch.randn(1, 3, 56, 56)}


def test_images_and_padding_and_latents_are_taken():
    text, image = texts(5)[0], with_image(30)
    image["input_ids"][0, -5:-3] = LATENT
    text["attention_mask"][0, :2] = 0
    text["pixel_values"] = None  # as a collator may say it
    self_check(LatentReasoner(lively(internvl()), LATENT), [text, image])


def test_what_is_too_long_for_a_model_is_left_to_the_check_of_lengths():
    self_check(LatentReasoner(of_kind("gpt2", max_position_embeddings=20), LATENT), texts(3, 20, 30))


@pytest.mark.parametrize("kind", WINDOWS)
def test_layers_with_a_window_are_taken_and_a_wrong_window_is_found(kind, monkeypatch):
    reasoner = LatentReasoner(lively(windowed(kind)), LATENT)
    self_check(reasoner, texts(3, 30))
    monkeypatch.setattr("multicoco.latent.cache.attention_window", lambda config, layer: 7)
    with pytest.raises(UserError, match=f"what the {kind} model computes"):
        self_check(reasoner, texts(3, 30))


@pytest.mark.parametrize(
    ("dtype", "made_by"),
    [
        (torch.bfloat16, lambda model: Projection(model, "mlp", to_embeddings=True)),
        (torch.float16, lambda model: Words(model, 3, LATENT)),
    ],
)
def test_it_leaves_everything_as_it_was_whatever_thoughts_are_made_of(dtype, made_by):
    model = lively(internvl()).to(dtype).train()
    thoughts = Projected(hidden_state, made_by(model))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    frequencies = model.get_decoder().rotary_emb.inv_freq.clone()
    reasoner = LatentReasoner(model, LATENT, "reference", thoughts)
    self_check(reasoner, [*texts(4), with_image(20)])
    assert model.training and reasoner.kernel == "reference" and not reasoner.cache_buffers
    assert model.get_decoder().config._attn_implementation == "multicoco_cached"
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_decoder().rotary_emb.inv_freq, frequencies)
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == before[key].dtype and torch.equal(tensor, before[key])
    assert {tensor.dtype for tensor in thoughts.parameters()} == {dtype}
    assert reasoner(**texts(9)[0], return_logits=True).logits.shape == (1, 9, 64)


def eager_with(change):
    own = modeling_qwen2.eager_attention_forward

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):
        return own(module, *change(query, key, value, attention_mask), scaling=scaling, **kwargs)

    return attend


def distance_bias(query, key, value, mask):
    columns = torch.arange(mask.shape[-1])
    return query, key, value, mask - 0.01 * (columns[:, None] - columns).abs()


def window(query, key, value, mask):
    columns = torch.arange(mask.shape[-1])
    return query, key, value, mask.masked_fill(columns[:, None] - columns >= 30, torch.finfo(mask.dtype).min)


def no_mask(query, key, value, mask):
    return query, key, value, torch.zeros_like(mask)


def capped_queries(query, key, value, mask):
    return torch.tanh(query / 5) * 5, key, value, mask


@pytest.mark.parametrize("change", [distance_bias, window, no_mask, capped_queries])
def test_what_a_models_attention_does_and_the_passes_do_not_is_found(monkeypatch, change):
    monkeypatch.setattr(modeling_qwen2, "eager_attention_forward", eager_with(change))
    with pytest.raises(UserError, match=r"what the qwen2 model computes.* differ by \S+e[+-]\d+ of their spread"):
        self_check(LatentReasoner(lively(qwen2()), LATENT), texts(3, 40))


def columns_as_positions(model):
    wpe = model.transformer.wpe
    table = wpe.weight
    wpe.forward = lambda positions: table[torch.arange(positions.shape[-1])].expand(*positions.shape, -1)


def halved_logits(model):
    own = model.forward
    model.forward = lambda *args, **kwargs: SimpleNamespace(logits=own(*args, **kwargs).logits / 2)


def own_way_of_attention(model):
    model.transformer.h[1].attn.forward = lambda hidden, **kwargs: (hidden.cumsum(1), None)


def attention_that_reads_the_mask(model):
    own = model.transformer.h[1].attn.forward
    model.transformer.h[1].attn.forward = lambda hidden, attention_mask=None, **kwargs: own(
        hidden + attention_mask[:, 0, :, -1:].float().clamp(min=-1), attention_mask=attention_mask, **kwargs
    )


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (columns_as_positions, "do not compute what the gpt2 model computes"),
        (halved_logits, "do not compute what the gpt2 model computes"),
        (own_way_of_attention, "do not compute what the gpt2 model computes"),
        (attention_that_reads_the_mask, r"cannot run this gpt2 model \(RuntimeError"),
    ],
)
def test_layers_and_heads_of_an_own_kind_are_found(tamper, message):
    model = of_kind("gpt2")
    tamper(model)
    with pytest.raises(UserError, match=message):
        self_check(LatentReasoner(model, LATENT), texts(3, 40))


@pytest.mark.parametrize("kind", ["stablelm", "nemotron", "bert"])
def test_models_that_cannot_be_run_get_one_message(kind):
    with pytest.raises(UserError, match=f"{kind} model.*choose another model"):
        self_check(LatentReasoner(of_kind(kind), LATENT), texts(3, 40))


def test_one_expert_chosen_otherwise_is_rounding_and_many_are_not(monkeypatch):
    model = of_kind("qwen2_moe")
    reasoner = LatentReasoner(model, LATENT)
    norm = model.model.norm
    for share, is_taken in ((0.02, True), (0.2, False)):
        own = norm.forward

        def change(hidden, own=own, share=share):
            changed = own(hidden).clone()
            if len(hidden) > 1:  # the passes' batch
                changed[:, : int(share * 40)] += 1
            return changed

        monkeypatch.setattr(norm, "forward", change)
        if is_taken:
            self_check(reasoner, texts(39, 40))
        else:
            with pytest.raises(UserError, match="qwen2_moe"):
                self_check(reasoner, texts(39, 40))
        monkeypatch.undo()


def test_weights_that_are_no_numbers_are_found():
    model = qwen2()
    model.lm_head.weight.data[5, 5] = float("nan")
    with pytest.raises(UserError, match="qwen2 model's own logits are not finite"):
        self_check(LatentReasoner(model, LATENT), texts(3, 5))


def test_of_a_large_vocabulary_few_positions_are_compared(monkeypatch):
    monkeypatch.setattr("multicoco.latent.self_check.MOST_LOGITS", 64 * 7)
    model, seen = qwen2(), []
    model.lm_head.register_forward_hook(lambda module, args, logits: seen.append(logits.shape[1]))
    self_check(LatentReasoner(model, LATENT), texts(3, 40))
    assert seen == [3, 7, 7]
