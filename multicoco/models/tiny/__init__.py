"""Offline models, small enough for two CPU cores, each as a local Hugging Face directory: loaded as the real ones."""

from multicoco.models.tiny.builders import TINY
from multicoco.models.tiny.tokenizer import build_tokenizer

build_tiny_internvl = TINY["internvl"]
build_tiny_text = TINY["text"]

__all__ = ["TINY", "build_tiny_internvl", "build_tiny_text", "build_tokenizer"]
