"""Decoder-only causal language models: Qwen2, Llama, GPT-2 and their like."""

from transformers import PreTrainedConfig

from multicoco.models.families.family import Family


class Text(Family):
    """Tokens in, tokens out."""

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        return not hasattr(config, "vision_config")
