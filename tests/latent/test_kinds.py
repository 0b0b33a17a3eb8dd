import pytest
import torch
from reference import qwen2
from transformers import AutoConfig

from multicoco.latent.kinds import attention_window, check_supported, rescaling_of, score_cap
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.rescaling import AS_THEY_ARE, Rescaling


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("llama4_text", {}, "chunked_attention"),
        ("mamba", {}, "linear_attention"),
        ("qwen3_next", {}, "linear_attention"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout 0.1 of llama"),
        ("qwen2", {"logits_scaling": 8.0}, "logits_scaling 8.0"),  # which its forward may do anything with
        ("granite_swa", {"logits_scaling": 8.0}, "logits_scaling 8.0"),
        ("qwen2", {"logit_scale": 0.0625}, "logit_scale 0.0625"),
        ("beam", {}, "final_logit_softcapping"),
        ("deepseek_v3", {}, "kv_lora_rank"),
        ("falcon", {"alibi": True}, "alibi"),
    ],
)
def test_what_the_passes_would_leave_out_is_refused_by_its_name(kind, options, message):
    with pytest.raises(ValueError, match=message):
        check_supported(AutoConfig.for_model(kind, **options))


@pytest.mark.parametrize(
    "kind",
    [
        *("qwen2", "llama", "gpt2", "mistral", "phi3", "granite", "internvl", "qwen3_moe", "gemma3_text", "gemma2"),
        *("cohere", "nanochat"),
    ],
)
def test_what_they_reproduce_is_taken(kind):
    check_supported(AutoConfig.for_model(kind))


MIXED = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("kind", "options", "windows"),
    [
        ("mistral", {"sliding_window": 8}, [8, 8]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("phi3", {"sliding_window": 8}, [8, 8]),
        ("phimoe", {"sliding_window": 8}, [8, 8]),
        ("starcoder2", {"sliding_window": 8}, [8, 8]),
        ("mixtral", {"sliding_window": 8}, [8, 8]),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, [None, None]),
        ("qwen2", MIXED, [None, 8]),
        ("qwen3_moe", {"sliding_window": 8, "use_sliding_window": False}, [None, None]),
        ("gemma3_text", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, [8, None]),
        ("llama", {}, [None, None]),
    ],
)
def test_the_window_of_each_layer(kind, options, windows):
    config = AutoConfig.for_model(kind, **{"num_hidden_layers": 2, **options})
    assert [attention_window(config, layer) for layer in range(2)] == windows


@pytest.mark.parametrize(
    ("kind", "options", "rescaling", "cap"),
    [
        ("qwen2", {}, AS_THEY_ARE, None),
        ("internvl", {}, AS_THEY_ARE, None),
        ("cohere", {"logit_scale": 0.25}, Rescaling(0.25), None),
        ("granite", {"logits_scaling": 8.0}, Rescaling(0.125), None),
        ("hyperclovax", {"logits_scaling": 8.0}, Rescaling(8.0), None),  # the same key
        ("gemma2", {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}, Rescaling(cap=30.0), 50.0),
        ("gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}, AS_THEY_ARE, None),
    ],
)
def test_what_is_made_of_logits_and_scores(kind, options, rescaling, cap):
    config = AutoConfig.for_model(kind, **options)
    check_supported(config)
    assert (rescaling_of(config), score_cap(config)) == (rescaling, cap)


def test_an_argument_of_an_attention_that_would_be_dropped_is_refused(monkeypatch):
    from transformers.models.qwen2 import modeling_qwen2

    own = modeling_qwen2.ALL_ATTENTION_FUNCTIONS.get_interface

    def with_argument(*args):
        return lambda *inputs, **kwargs: own(*args)(*inputs, **{**kwargs, "s_aux": 5.0})

    monkeypatch.setattr(modeling_qwen2.ALL_ATTENTION_FUNCTIONS, "get_interface", with_argument)
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match="s_aux of qwen2"):
        LatentReasoner(qwen2(), 63)(ids, torch.ones_like(ids), ids)
