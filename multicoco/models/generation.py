"""What a model brings along for `generate`: its ends of text count, everything else is the run's to say.

transformers fills whatever a given GenerationConfig leaves open from the model's own, so the model's own is emptied.
"""

from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_NO_SETTINGS = ("transformers_version", "_from_model_config", "use_cache")


def reset_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Leaves of a model's generation config the tokens alone, and adds that rows without a token are never generated.

    Returns: the settings that count no more, by their name, as far as they are not transformers' defaults.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(**{key: getattr(own, key) for key in _TOKENS})
    suppress_unknown_rows(model, tokenizer)
    defaults = own._get_default_generation_params()
    return {
        key: value
        for key, value in own.to_diff_dict().items()
        if key not in (*_TOKENS, *_NO_SETTINGS) and value is not False and value != defaults.get(key)
    }


def suppress_unknown_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """To be called again when the tokenizer has changed."""
    known = set(tokenizer.get_vocab().values())
    unknown = [row for row in range(model.get_output_embeddings().weight.shape[0]) if row not in known]
    model.generation_config.suppress_tokens = unknown or None
