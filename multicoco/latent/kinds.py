"""Which models the latent passes reproduce, and what their layers see: known from the config alone.

What a config does not tell, `multicoco.latent.self_check` finds out by running the model.
"""

from typing import Any

from transformers import PreTrainedConfig

from multicoco.latent.head import rescaling_keys

# settings that change attention or logits outside of what the passes run, and the value at which they do nothing; of
# logits, some kinds are known (`latent.head`)
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
    for key in _NOT_REPRODUCED.keys() - rescaling_keys(model_config):
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
