"""What is known of a kind of language model from its config alone: what its layers see, what is made of their scores
and of the head's logits, and what of that the latent passes do not reproduce.

What a config does not tell, `multicoco.latent.self_check` finds out by running the model.
"""

from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from multicoco.latent.rescaling import Rescaling


class _LogitKeys(NamedTuple):
    """Of a config, that say what is made of logits: the same key multiplies in one kind and divides in another."""

    factor: str | None = None
    divisor: str | None = None
    cap: str | None = None


_CAPPED, _DIVIDED = _LogitKeys(cap="final_logit_softcapping"), _LogitKeys(divisor="logits_scaling")
_MULTIPLIED = _LogitKeys(factor="logit_scale")
_LOGIT_KEYS = {
    **dict.fromkeys(("gemma2", "gemma3_text", "nanochat", "vaultgemma"), _CAPPED),
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), _MULTIPLIED),
    **dict.fromkeys(("granite", "granitemoe", "granitemoeshared"), _DIVIDED),
    "hyperclovax": _LogitKeys(factor="logits_scaling"),
}
# settings that change attention or logits outside of what the passes run, and the value at which they do nothing; those
# of logits are refused where `_LOGIT_KEYS` does not have them of the kind
_NOT_REPRODUCED: dict[str, Any] = {
    "alibi": False,
    "attention_chunk_size": None,
    "attention_dropout": 0.0,
    "final_logit_softcapping": None,
    "kv_lora_rank": None,  # multi-head latent attention: keys and values of different sizes
    "lm_head_multiplier": 1.0,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "output_multiplier": 1.0,
    "use_bidirectional_attention": False,
}
_LAYER_KINDS = {"full_attention", "sliding_attention"}


def check_supported(model_config: PreTrainedConfig) -> None:
    """Refuses models whose attention or head is known to be of a kind that the latent passes do not reproduce.

    Raises:
        ValueError: says which setting it is.
    """
    text, name = model_config.get_text_config(), model_config.model_type
    if others := set(getattr(text, "layer_types", None) or ()) - _LAYER_KINDS:
        raise ValueError(
            f"latent passes need attention in every layer, full or in a window, {name} has {', '.join(others)}"
        )
    for key in _NOT_REPRODUCED.keys() - set(_logit_keys(model_config)):
        if getattr(text, key, None) not in (None, _NOT_REPRODUCED[key]):
            raise ValueError(f"latent passes do not reproduce {key} {getattr(text, key)} of {name}")


def attention_window(config: PreTrainedConfig, layer: int) -> int | None:
    """How many columns a position sees in a layer of a language model, itself among them; None: all before it."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        has_window = kinds[layer] == "sliding_attention"
    else:
        has_window = getattr(config, "use_sliding_window", True) is not False
    window: int | None = getattr(config, "sliding_window", None)
    return window if has_window else None


def score_cap(model_config: PreTrainedConfig) -> float | None:
    """What layers cap their attention's scores at, cap * tanh(score / cap), which they tell their attention themselves;
    None: nothing."""
    cap: float | None = getattr(model_config.get_text_config(), "attn_logit_softcapping", None)
    return cap


def rescaling_of(model_config: PreTrainedConfig) -> Rescaling:
    """What a model makes of its head's logits."""
    factor, divisor, cap = (None if key is None else getattr(model_config, key) for key in _logit_keys(model_config))
    return Rescaling((1.0 if factor is None else factor) / (1.0 if divisor is None else divisor), cap)


def _logit_keys(model_config: PreTrainedConfig) -> _LogitKeys:
    return _LOGIT_KEYS.get(model_config.model_type, _LogitKeys())
