"""Offline models, small enough for two CPU cores, each as a local Hugging Face directory: loaded as the real ones."""

from multicoco.models.tiny.builders import (
    build_tiny_idefics3,
    build_tiny_internvl,
    build_tiny_qwen2_5_vl,
    build_tiny_qwen2_vl,
    build_tiny_qwen3_vl,
    build_tiny_text,
)
from multicoco.models.tiny.tokenizer import build_tokenizer

TINY = {  # by the family's name
    "internvl": build_tiny_internvl,
    "idefics3": build_tiny_idefics3,
    "qwen2_vl": build_tiny_qwen2_vl,
    "qwen2_5_vl": build_tiny_qwen2_5_vl,
    "qwen3_vl": build_tiny_qwen3_vl,
    "text": build_tiny_text,
}

__all__ = ["TINY", *(build.__name__ for build in TINY.values()), "build_tokenizer"]
