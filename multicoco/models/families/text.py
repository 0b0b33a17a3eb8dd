"""Decoder-only causal language models: Qwen2, Llama, GPT-2 and their like."""

from transformers import PreTrainedConfig

from multicoco.models.families.family import Family

# tests/latent/test_self_check.py has one of each
PROVEN = frozenset(
    {
        *("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "granitemoe"),
        *("granitemoeshared", "hyperclovax", "llama", "mistral", "nanochat", "olmo2", "opt", "phi", "phi3", "qwen2"),
        *("qwen2_moe", "qwen3", "smollm3", "starcoder2", "vaultgemma"),
    }
)


class Text(Family):
    """Tokens in, tokens out."""

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        has_one_part = config.get_text_config() is config and not hasattr(config, "vision_config")
        own_code = getattr(config, "auto_map", None) or {}
        is_causal = type(config) in cls.auto_model._model_mapping or cls.auto_model.__name__ in own_code
        return has_one_part and is_causal and not config.is_encoder_decoder

    @property
    def is_proven(self) -> bool:
        return self.config.model_type in PROVEN
