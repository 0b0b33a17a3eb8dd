"""Which models the latent passes reproduce, and how long their sequences may be: known from the config alone.

What a config does not tell, `multicoco.latent.self_check` finds out by running the model.
"""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from multicoco.models.checks import position_limit

# settings that change attention or logits outside of what the passes run, and the value at which they do nothing
_NOT_REPRODUCED: dict[str, Any] = {
    "alibi": False,
    "attention_chunk_size": None,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "kv_lora_rank": None,  # multi-head latent attention: keys and values of different sizes
    "lm_head_multiplier": 1.0,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "output_multiplier": 1.0,
}


def check_supported(model_config: PreTrainedConfig) -> None:
    """Refuses models whose attention or head is known to be of a kind that the latent passes do not reproduce.

    Raises:
        ValueError: says which setting it is.
    """
    text, name = model_config.get_text_config(), model_config.model_type
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"latent passes need full attention in every layer, {name} has {', '.join(sorted(kinds))}")
    for key, neutral in _NOT_REPRODUCED.items():
        if getattr(text, key, None) not in (None, neutral):
            raise ValueError(f"latent passes do not reproduce {key} {getattr(text, key)} of {name}")


def attention_window(config: PreTrainedConfig) -> int | None:
    """How many columns a position sees in the layers of a language model, itself among them; None: all before it."""
    if getattr(config, "layer_types", None) or getattr(config, "use_sliding_window", True) is False:
        return None  # layers that are named have full attention, see `check_supported`
    window: int | None = getattr(config, "sliding_window", None)
    return window


def longest_sequence(model: PreTrainedModel) -> int | None:
    """The most columns, prompt and answer together, for which the passes give what the model gives; None: no limit.

    Past it, learned position embeddings end, or a sliding window would leave out the first columns.
    """
    limits = [position_limit(model), attention_window(model.config.get_text_config())]
    return min((limit for limit in limits if limit is not None), default=None)
