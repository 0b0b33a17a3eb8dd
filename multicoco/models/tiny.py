"""The offline defaults, small enough for two CPU cores: InternVL's architecture, or for text alone Qwen2's, each as a
local Hugging Face directory.

Random weights and a tokenizer trained on the given texts; loaded by the same path as OpenGVLab/InternVL3-1B-hf.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

INITIALIZER_RANGE = 0.06  # the usual 0.02 is for wider models: with it, CoT takes more than twice the steps
IMAGE_SIZE = 84  # pixels: 6 x 6 patches of 14, 3 x 3 image tokens after down-sampling by 0.5

_CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<IMG_CONTEXT>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int, images: bool = True) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with InternVL's control tokens and chat format, and with image tokens if asked for."""
    image_tokens = _IMAGE_TOKENS if images else {}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_CONTROL_TOKENS, *image_tokens.values()],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    roles = ["user\n", "assistant\n"] * 100  # words of the chat template, one token each
    tokenizer.train_from_iterator([*texts, *roles], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=_CHAT_TEMPLATE,
        extra_special_tokens=image_tokens,
    )


def build_tiny_internvl(
    texts: Iterable[str],
    out_dir: Path,
    seed: int = 0,
    hidden_size: int = 128,
    text_layers: int = 4,
    vocab_size: int = 1024,
) -> Path:
    """Writes model, tokenizer and image processor to out_dir and returns it."""
    tokenizer = build_tokenizer(texts, vocab_size)
    set_seed(seed)
    config = InternVLConfig(
        vision_config={
            "hidden_size": hidden_size,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 4 * hidden_size,
            "image_size": (IMAGE_SIZE, IMAGE_SIZE),
            "patch_size": (14, 14),
            "layer_scale_init_value": 1.0,  # the default, 0.1, is meant for pretrained weights
            "initializer_range": INITIALIZER_RANGE,
        },
        text_config={"model_type": "qwen2", **_language(tokenizer, hidden_size, text_layers)},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=9,
        downsample_ratio=0.5,
    )
    model = InternVLForConditionalGeneration(config).float()
    processor = GotOcr2ImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, crop_to_patches=True, min_patches=1, max_patches=1
    )
    processor.save_pretrained(out_dir)
    return _save(model, tokenizer, out_dir)


def build_tiny_text(
    texts: Iterable[str],
    out_dir: Path,
    seed: int = 0,
    hidden_size: int = 128,
    text_layers: int = 4,
    vocab_size: int = 1024,
) -> Path:
    """Writes model and tokenizer to out_dir and returns it: the language model of the tiny InternVL alone."""
    tokenizer = build_tokenizer(texts, vocab_size, images=False)
    set_seed(seed)
    config = Qwen2Config(**_language(tokenizer, hidden_size, text_layers))
    return _save(Qwen2ForCausalLM(config).float(), tokenizer, out_dir)


def _language(tokenizer: PreTrainedTokenizerBase, hidden_size: int, layers: int) -> dict[str, Any]:
    """The keys of a Qwen2 config."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": INITIALIZER_RANGE,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out_dir: Path) -> Path:
    assert model.generation_config is not None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    for part in (model, tokenizer):
        part.save_pretrained(out_dir)
    return out_dir
