import pytest
import torch
from reference import qwen2
from transformers import AutoConfig, AutoModelForCausalLM

from multicoco.latent.kinds import attention_window, check_supported, longest_sequence
from multicoco.latent.reasoner import LatentReasoner

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": 64}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("gemma3_text", {}, "full attention in every layer, gemma3_text has .*sliding_attention"),
        ("gpt_oss", {}, "full attention"),
        ("llama4_text", {}, "chunked_attention"),
        ("mamba", {}, "linear_attention"),
        ("qwen3_next", {}, "linear_attention"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, "num_hidden_layers": 2}, "sliding_attention"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout 0.1 of llama"),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling 8.0"),
        ("cohere", {}, "logit_scale 0.0625"),
        ("nanochat", {}, "final_logit_softcapping"),
        ("deepseek_v3", {}, "kv_lora_rank"),
        ("falcon", {"alibi": True}, "alibi"),
    ],
)
def test_what_the_passes_would_leave_out_is_refused_by_its_name(kind, options, message):
    with pytest.raises(ValueError, match=message):
        check_supported(AutoConfig.for_model(kind, **options))


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "mistral", "phi3", "granite", "internvl", "qwen3_moe"])
def test_what_they_reproduce_is_taken(kind):
    check_supported(AutoConfig.for_model(kind))


@pytest.mark.parametrize(
    ("kind", "options", "window"),
    [
        ("mistral", {"sliding_window": 8}, 8),
        ("mistral", {"sliding_window": None}, None),
        ("phi3", {"sliding_window": 8}, 8),
        ("phimoe", {"sliding_window": 8}, 8),
        ("starcoder2", {"sliding_window": 8}, 8),
        ("mixtral", {"sliding_window": 8}, 8),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, None),
        ("qwen3_moe", {"sliding_window": 8, "use_sliding_window": False}, None),
        ("llama", {}, None),
    ],
)
def test_the_window_of_models_whose_layers_are_alike(kind, options, window):
    assert attention_window(AutoConfig.for_model(kind, **options)) == window


@pytest.mark.parametrize(
    ("kind", "options", "longest"),
    [
        ("gpt2", {"n_positions": 32}, 32),
        ("opt", {"max_position_embeddings": 32, "ffn_dim": 16}, 32),
        ("mistral", {"sliding_window": 8, "max_position_embeddings": 32, "num_key_value_heads": 2}, 8),
        ("llama", {"max_position_embeddings": 32}, None),
    ],
)
def test_the_longest_sequence_is_known_and_no_longer_one_runs(kind, options, longest):
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **{**SIZES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **options})
    )
    assert longest_sequence(model) == longest
    reasoner = LatentReasoner(model.eval(), 63, "reference")

    def run(tokens, padding=0):
        ids = torch.full((1, padding + tokens), 5)
        mask = torch.ones_like(ids)
        mask[:, :padding] = 0
        return reasoner(ids, mask, ids, n_passes=2).loss

    assert run(longest or 64, padding=3).isfinite()
    if longest:
        with pytest.raises((ValueError, IndexError)):
            run(longest + 1)


@pytest.mark.parametrize("key", ["softcap", "s_aux"])
def test_arguments_of_an_attention_that_would_be_dropped_are_refused(monkeypatch, key):
    from transformers.models.qwen2 import modeling_qwen2

    own = modeling_qwen2.ALL_ATTENTION_FUNCTIONS.get_interface

    def with_argument(*args):
        return lambda *inputs, **kwargs: own(*args)(*inputs, **{**kwargs, key: 5.0})

    monkeypatch.setattr(modeling_qwen2.ALL_ATTENTION_FUNCTIONS, "get_interface", with_argument)
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match=f"{key} of qwen2"):
        LatentReasoner(qwen2(), 63)(ids, torch.ones_like(ids), ids)
