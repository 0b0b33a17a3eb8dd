"""Tiny models of every family: architecture and files of the real ones, random weights.

Images of 84 x 84 pixels, as those of `multicoco.tasks.scenes`, become 3 x 3 tokens.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    BaseImageProcessor,
    Gemma2Config,
    Gemma2ForCausalLM,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    set_seed,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from multicoco.models.tiny.tokenizer import (
    IDEFICS3_IMAGES,
    INTERNVL_IMAGES,
    LLAVA_IMAGES,
    NO_IMAGES,
    QWEN_IMAGES,
    Images,
    build_tokenizer,
)

INITIALIZER_RANGE = 0.06  # the usual 0.02 is for wider models: with it, CoT takes more than twice the steps
IMAGE_SIZE = 84  # pixels: 6 x 6 patches of 14, 3 x 3 image tokens
LLAVA_PATCH = 28  # each of which is an image token

Made = tuple[PreTrainedModel, BaseImageProcessor | ProcessorMixin | None]


def _internvl(tokenizer: PreTrainedTokenizerBase, hidden_size: int, text_layers: int) -> Made:
    """As OpenGVLab/InternVL3-1B-hf, without tiles."""
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
    processor = GotOcr2ImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, crop_to_patches=True, min_patches=1, max_patches=1
    )
    return InternVLForConditionalGeneration(config), processor


def _text(tokenizer: PreTrainedTokenizerBase, hidden_size: int, text_layers: int) -> Made:
    """Qwen2: the language model of the tiny InternVL alone."""
    config = Qwen2Config(**_language(tokenizer, hidden_size, text_layers))
    return Qwen2ForCausalLM(config), None


def _gemma2(tokenizer: PreTrainedTokenizerBase, hidden_size: int, text_layers: int) -> Made:
    """As google/gemma-2-2b-it: every other layer has a window; caps that random weights reach."""
    config = Gemma2Config(
        **_language(tokenizer, hidden_size, text_layers),
        head_dim=hidden_size // 4,
        query_pre_attn_scalar=hidden_size // 4,
        sliding_window=64,
        attn_logit_softcapping=1.0,
        final_logit_softcapping=6.0,
    )
    return Gemma2ForCausalLM(config), None


def _idefics3(tokenizer: PreTrainedTokenizerBase, hidden_size: int, text_layers: int) -> Made:
    """As HuggingFaceTB/SmolVLM2-256M-Video-Instruct, without tiles."""
    vision = {
        "hidden_size": hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 4 * hidden_size,
        "image_size": IMAGE_SIZE,
        "patch_size": 14,
        "initializer_range": INITIALIZER_RANGE,
    }
    config = SmolVLMConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **_language(tokenizer, hidden_size, text_layers)},
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        tie_word_embeddings=True,
    )
    edge = {"longest_edge": IMAGE_SIZE}
    processor = SmolVLMImageProcessorPil(size=edge, max_image_size=edge)
    return SmolVLMForConditionalGeneration(config), processor


def _llava_vision(kind: str, hidden_size: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 4 * hidden_size,
        "image_size": IMAGE_SIZE,
        "patch_size": LLAVA_PATCH,
    }


def _llava_onevision(tokenizer: PreTrainedTokenizerBase, hidden_size: int, text_layers: int) -> Made:
    """As llava-hf/llava-onevision-qwen2-0.5b-ov-hf, without the tiles of a larger image: a whole, and one tile.

    The tile ends each of its rows with a vector of its own: 3 x 3 tokens, and 3 x (3 + 1).
    """
    canvases = [[IMAGE_SIZE, IMAGE_SIZE]]
    config = LlavaOnevisionConfig(
        vision_config={**_llava_vision("siglip_vision_model", hidden_size), "vision_use_head": False},
        text_config={"model_type": "qwen2", **_language(tokenizer, hidden_size, text_layers)},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=canvases,
        tie_word_embeddings=True,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=canvases)
    return LlavaOnevisionForConditionalGeneration(config), processor


def _generic(tokenizer: PreTrainedTokenizerBase, hidden_size: int, text_layers: int) -> Made:
    """As llava-hf/llava-1.5-7b-hf, which is of no family of its own."""
    config = LlavaConfig(
        vision_config=_llava_vision("clip_vision_model", hidden_size),
        text_config={"model_type": "llama", **_language(tokenizer, hidden_size, text_layers)},
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=True,
    )
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)
    options = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(
        images, tokenizer, patch_size=LLAVA_PATCH, chat_template=tokenizer.chat_template, **options
    )
    return LlavaForConditionalGeneration(config), processor


def _qwen2_vl(tokenizer: PreTrainedTokenizerBase, hidden_size: int, text_layers: int) -> Made:
    """As Qwen/Qwen2-VL-2B-Instruct."""
    own = _qwen_vision(hidden_size)
    vision = {key: own[key] for key in ("hidden_size", "depth", "num_heads", "patch_size", "initializer_range")}
    text = {**_language(tokenizer, hidden_size, text_layers), "rope_parameters": _three_axes(hidden_size // 4)}
    config = Qwen2VLConfig(
        text_config=text, vision_config={**vision, "embed_dim": hidden_size}, **_qwen_tokens(tokenizer)
    )
    return Qwen2VLForConditionalGeneration(config), _qwen_processor()


def _qwen2_5_vl(tokenizer: PreTrainedTokenizerBase, hidden_size: int, text_layers: int) -> Made:
    """As Qwen/Qwen2.5-VL-3B-Instruct: the first of two vision layers attends within windows of 2 x 2 tokens."""
    vision = {**_qwen_vision(hidden_size), "window_size": 56, "fullatt_block_indexes": [1]}
    text = {**_language(tokenizer, hidden_size, text_layers), "rope_parameters": _three_axes(hidden_size // 4)}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_tokens(tokenizer))
    return Qwen2_5_VLForConditionalGeneration(config), _qwen_processor()


def _qwen3_vl(tokenizer: PreTrainedTokenizerBase, hidden_size: int, text_layers: int) -> Made:
    """As Qwen/Qwen3-VL-2B-Instruct: features of the first of two vision layers enter after the first text layer."""
    vision = {**_qwen_vision(hidden_size), "num_position_embeddings": 36, "deepstack_visual_indexes": [0]}
    rope = {**_three_axes(hidden_size // 4), "mrope_interleaved": True}
    text = {**_language(tokenizer, hidden_size, text_layers), "head_dim": hidden_size // 4, "rope_parameters": rope}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_tokens(tokenizer))
    return Qwen3VLForConditionalGeneration(config), _qwen_processor()


def _qwen_vision(hidden_size: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "out_hidden_size": hidden_size,
        "depth": 2,
        "num_heads": 4,
        "intermediate_size": 4 * hidden_size,
        "patch_size": 14,
        "initializer_range": INITIALIZER_RANGE,
    }


def _three_axes(head_dim: int) -> dict[str, Any]:
    """Half of the frequencies are of time, a quarter each of height and width, about as in the real models."""
    quarter = head_dim // 8
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [head_dim // 2 - 2 * quarter, quarter, quarter]}


def _qwen_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    return {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in names} | {"tie_word_embeddings": True}


def _qwen_processor() -> BaseImageProcessor:
    area = 4 * IMAGE_SIZE**2
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 56**2, "longest_edge": area}, patch_size=14, merge_size=2)


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


@dataclass(frozen=True)
class Builder:
    """Writes a tiny model of one kind.

    Attributes:
        images: the tokens that stand for images, see `build_tokenizer`; none for a model that sees none.
        make: from the tokenizer, the width and the number of layers of the language model.
        chats: see `build_tokenizer`.
    """

    images: Images
    make: Callable[[PreTrainedTokenizerBase, int, int], Made]
    chats: bool = True

    @property
    def sees_images(self) -> bool:
        return self.images is not NO_IMAGES

    def __call__(
        self,
        texts: Iterable[str],
        out_dir: Path,
        seed: int = 0,
        hidden_size: int = 128,
        text_layers: int = 4,
        vocab_size: int = 1024,
    ) -> Path:
        """Model, tokenizer and image processor in a folder, which is returned."""
        tokenizer = build_tokenizer(texts, vocab_size, self.images, self.chats)
        set_seed(seed)
        model, image_processor = self.make(tokenizer, hidden_size, text_layers)
        assert model.generation_config is not None
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        for part in (model.float(), tokenizer, image_processor):
            if part is not None:
                part.save_pretrained(out_dir)
        return out_dir


TINY = {  # by the family's name; of text models, another by its kind
    "internvl": Builder(INTERNVL_IMAGES, _internvl),
    "idefics3": Builder(IDEFICS3_IMAGES, _idefics3),
    "llava_onevision": Builder(LLAVA_IMAGES, _llava_onevision),
    "qwen2_vl": Builder(QWEN_IMAGES, _qwen2_vl),
    "qwen2_5_vl": Builder(QWEN_IMAGES, _qwen2_5_vl),
    "qwen3_vl": Builder(QWEN_IMAGES, _qwen3_vl),
    "text": Builder(NO_IMAGES, _text),
    "text_without_chats": Builder(NO_IMAGES, _text, chats=False),
    "gemma2": Builder(NO_IMAGES, _gemma2),
    "generic": Builder(LLAVA_IMAGES, _generic),
}
