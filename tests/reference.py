"""Small random models, and Coconut's forward pass in its plainest form: the whole sequence again for every latent."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

LATENT, IMAGE, EOS, PAD = 63, 60, 62, 61  # ids in every model's vocabulary of 64; words are below 60
IMAGE_TOKENS = 4  # of the InternVL model, per tile

_TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


_EXPERTS = {
    "model_type": "qwen2_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "initializer_range": 0.1,
}


def internvl(
    seed: int = 0, tied: bool = True, experts: bool = False, layers: int = 3
) -> InternVLForConditionalGeneration:
    torch.manual_seed(seed)
    kind = _EXPERTS if experts else {"model_type": "qwen2"}
    return _internvl({"tie_word_embeddings": tied, **_TEXT, **kind, "num_hidden_layers": layers})


def _internvl(text: dict[str, object]) -> InternVLForConditionalGeneration:
    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": (56, 56),
            "patch_size": (14, 14),
            "layer_scale_init_value": 1.0,
        },
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=0.5,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return InternVLForConditionalGeneration(config)


def qwen2(seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **_TEXT))


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **_TEXT))


_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOWS: dict[str, dict] = {  # of 6 columns in some of three layers; Gemma 3's turn otherwise in those
    "mistral": {"sliding_window": 6},
    "qwen2": {"sliding_window": 6, "use_sliding_window": True, "layer_types": _MIXED},
    "gemma3_text": {"sliding_window": 6, "layer_types": _MIXED, "head_dim": 8},
    "gemma2": {
        "sliding_window": 6,
        "layer_types": _MIXED,
        "head_dim": 8,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 0.7,
        "final_logit_softcapping": 1.5,
    },
}
RESCALED: dict[str, dict] = {  # whose logits are not those of the head, by so much that it shows
    "gemma2": WINDOWS["gemma2"],
    "gemma3_text": WINDOWS["gemma3_text"] | {"final_logit_softcapping": 1.5},
    "vaultgemma": WINDOWS["gemma2"],
    "nanochat": {"final_logit_softcapping": 1.5},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 6, "layer_types": _MIXED, "head_dim": 8},
    "granite": {
        "logits_scaling": 3.0,
        "attention_multiplier": 0.4,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
    },
    "granitemoe": {"logits_scaling": 3.0, "num_local_experts": 4},
    "granitemoeshared": {"logits_scaling": 3.0, "num_local_experts": 4, "shared_intermediate_size": 16},
    "hyperclovax": {"logits_scaling": 3.0},
}


def windowed(kind: str, **changed) -> PreTrainedModel:
    """A model of WINDOWS."""
    return _of_kind(kind, WINDOWS[kind] | changed)


def rescaled(kind: str, **changed) -> PreTrainedModel:
    """A model of RESCALED."""
    return _of_kind(kind, RESCALED[kind] | changed)


def text_model(kind: str, layers: int = 2, **changed) -> PreTrainedModel:
    """A model of WINDOWS, with a window in one layer of two or in all, or another one of defaults."""
    options = WINDOWS.get(kind, {})
    mixed = {"layer_types": _MIXED[:layers]} if "layer_types" in options else {}
    return _of_kind(kind, options | mixed | {"num_hidden_layers": layers} | changed)


def _of_kind(kind: str, options: dict) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {**_TEXT, "initializer_range": 0.2, "tie_word_embeddings": True}
    config: PreTrainedConfig = AutoConfig.for_model(kind, **{**sizes, **options})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    if hasattr(config, "num_local_experts"):
        model.set_experts_implementation("eager")  # the only one that takes fp64
    return model


_PATCHES = {
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "intermediate_size": 48,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
_THREE_AXES = {**_TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
SPREAD = 0.2  # of weights, at which a wrong position or a lost feature shows


def internvl3_5(
    seed: int = 0, tied: bool = True, spread: float = SPREAD, layers: int = 3
) -> InternVLForConditionalGeneration:
    """Its language model is a Qwen3."""
    torch.manual_seed(seed)
    own = {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": tied, "initializer_range": spread}
    return _internvl({**_TEXT, **own, "num_hidden_layers": layers})


def qwen2_vl(
    seed: int = 0, tied: bool = True, spread: float = SPREAD, layers: int = 3
) -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(seed)
    vision = {key: _PATCHES[key] for key in ("depth", "num_heads", "patch_size")}
    config = Qwen2VLConfig(
        text_config={**_THREE_AXES, "initializer_range": spread, "num_hidden_layers": layers},
        vision_config={**vision, "embed_dim": 32, "hidden_size": 32, "initializer_range": spread},
        image_token_id=IMAGE,
        video_token_id=59,
        tie_word_embeddings=tied,
    )
    return Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl(
    seed: int = 0, tied: bool = True, spread: float = SPREAD, layers: int = 3
) -> Qwen2_5_VLForConditionalGeneration:
    """Windows of 2 x 2 image tokens in the first layer of its vision tower."""
    torch.manual_seed(seed)
    vision = {**_PATCHES, "window_size": 56, "fullatt_block_indexes": [1], "initializer_range": spread}
    config = Qwen2_5_VLConfig(
        text_config={**_THREE_AXES, "initializer_range": spread, "num_hidden_layers": layers},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=59,
        tie_word_embeddings=tied,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(
    seed: int = 0, tied: bool = True, spread: float = SPREAD, layers: int = 3
) -> Qwen3VLForConditionalGeneration:
    """Features of both layers of its vision tower enter after the first two layers of three."""
    torch.manual_seed(seed)
    vision = {
        **_PATCHES,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
        "initializer_range": spread,
    }
    config = Qwen3VLConfig(
        text_config={**_THREE_AXES, "head_dim": 8, "initializer_range": spread, "num_hidden_layers": layers},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=59,
        tie_word_embeddings=tied,
    )
    return Qwen3VLForConditionalGeneration(config)


def qwen3_vl_moe(seed: int = 0, tied: bool = True, spread: float = SPREAD, layers: int = 3) -> PreTrainedModel:
    """The same with two of four experts in every layer."""
    torch.manual_seed(seed)
    vision = {**_PATCHES, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    config = AutoConfig.for_model(
        "qwen3_vl_moe",
        text_config={**_THREE_AXES, **experts, "head_dim": 8, "initializer_range": spread, "num_hidden_layers": layers},
        vision_config={**vision, "initializer_range": spread},
        image_token_id=IMAGE,
        video_token_id=59,
        tie_word_embeddings=tied,
    )
    model = AutoModelForImageTextToText.from_config(config)
    model.set_experts_implementation("eager")  # the only one that takes fp64
    return model


def _tiles(kind: str, seed: int, tied: bool, spread: float, layers: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 56,
        "patch_size": 14,
        "initializer_range": spread,
    }
    text = {"model_type": "llama", **_TEXT, "initializer_range": spread, "num_hidden_layers": layers}
    config = AutoConfig.for_model(
        kind,
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
        tie_word_embeddings=tied,
    )
    return AutoModelForImageTextToText.from_config(config)


def idefics3(seed: int = 0, tied: bool = True, spread: float = SPREAD, layers: int = 3) -> PreTrainedModel:
    return _tiles("idefics3", seed, tied, spread, layers)


def smolvlm(seed: int = 0, tied: bool = True, spread: float = SPREAD, layers: int = 3) -> PreTrainedModel:
    return _tiles("smolvlm", seed, tied, spread, layers)


_CANVASES = [[56, 56], [56, 112], [112, 56], [112, 112]]


def _llava(kind: str, seed: int, tied: bool, vision: dict, text: dict, **options) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 56}
    config = AutoConfig.for_model(
        kind,
        vision_config={**sizes, "patch_size": 14, **vision},
        text_config={**_TEXT, "tie_word_embeddings": tied, **text},
        image_token_index=IMAGE,
        tie_word_embeddings=tied,
        **options,
    )
    return AutoModelForImageTextToText.from_config(config)


def llava_onevision(seed: int = 0, tied: bool = True, spread: float = SPREAD, layers: int = 3) -> PreTrainedModel:
    """Tiles of 4 x 4 features, and at most twice as many of them as the whole image has: more are made fewer."""
    vision = {"model_type": "siglip_vision_model", "num_hidden_layers": 2, "vision_use_head": False}
    text = {"model_type": "qwen2", "initializer_range": spread, "num_hidden_layers": layers}
    canvases = {"image_grid_pinpoints": _CANVASES, "vision_aspect_ratio": "anyres_max_2", "video_token_index": 59}
    model = _llava("llava_onevision", seed, tied, vision, text, initializer_range=spread, **canvases)
    for path, parameter in model.named_parameters():
        if parameter.dim() > 1 and "vision" in path:
            torch.nn.init.normal_(parameter, std=spread)
    return model


def llava(seed: int = 0, tied: bool = True, spread: float = SPREAD, layers: int = 3) -> PreTrainedModel:
    """Of no family of its own: a class token that is left out, and features of the last layer but one."""
    vision = {"model_type": "clip_vision_model", "num_hidden_layers": 3, "initializer_range": spread, "patch_size": 28}
    text = {"model_type": "llama", "initializer_range": spread, "num_hidden_layers": layers}
    model = _llava("llava", seed, tied, vision, text)
    for path, parameter in model.named_parameters():
        if parameter.dim() > 1 and "vision" in path:
            torch.nn.init.normal_(parameter, std=spread)
    return model


SIGHTED = {
    "idefics3": idefics3,
    "internvl": internvl,
    "internvl3_5": internvl3_5,
    "llava": llava,
    "llava_onevision": llava_onevision,
    "smolvlm": smolvlm,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
}
MODELS = {"internvl": internvl, "qwen2": qwen2, "llama": llama}


def mixed_batch(name: str) -> dict[str, Tensor]:
    """For a model: rows of 3, 0, 1 and 2 latents that are not aligned, two of them padded on the left; with labels."""
    rng, image = torch.Generator().manual_seed(5), name == "internvl"
    rows = []
    for left, n_words, n_latents in ((0, 5, 3), (1, 4, 0), (2, 2, 1), (0, 3, 2)):
        words = torch.randint(0, 60, (n_words + 4,), generator=rng).tolist()
        context = [IMAGE] * IMAGE_TOKENS * image + words[:n_words] + [LATENT] * n_latents
        rows.append((left, context, words[n_words:]))
    length = max(left + len(context) + len(answer) for left, context, answer in rows)
    batch = {key: torch.full((len(rows), length), pad) for key, pad in (("input_ids", PAD), ("labels", -100))}
    batch["attention_mask"] = torch.zeros(len(rows), length, dtype=torch.long)
    for i, (left, context, answer) in enumerate(rows):
        end = left + len(context) + len(answer)
        batch["input_ids"][i, left:end] = torch.tensor(context + answer)
        batch["attention_mask"][i, left:end] = 1
        batch["labels"][i, end - len(answer) : end] = torch.tensor(answer)
    if image:
        batch["pixel_values"] = torch.randn(len(rows), 3, 56, 56, generator=rng, dtype=torch.float64)
    return batch


def coconut_logits(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values: Tensor | None = None,
    thought: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> Tensor:
    """(B, T, V): each latent embedding filled in from a run of the whole model over all that stands before it.

    Args:
        thought: (B, D) hidden states of the column before -> what is filled in.
    """
    embeds = model.get_input_embeddings()(input_ids)
    if pixel_values is not None:
        features = model.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output
        embeds = embeds.masked_scatter((input_ids == IMAGE)[..., None], features.to(embeds))
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)

    def run(embeds: Tensor) -> Tensor:
        return model.get_decoder()(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state

    for column in range(1, input_ids.shape[1]):
        latent = (input_ids[:, column] == LATENT) & attention_mask[:, column].bool()
        if latent.any():
            filled = torch.where(latent[:, None], thought(run(embeds)[:, column - 1]), embeds[:, column])
            embeds = torch.cat([embeds[:, :column], filled[:, None], embeds[:, column + 1 :]], dim=1)
    return model(inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False).logits


def coconut_loss(model, input_ids, attention_mask, labels, pixel_values=None, **how) -> Tensor:
    """Mean next-token cross-entropy over the labelled positions; `how`: as of `coconut_logits`."""
    logits = coconut_logits(model, input_ids, attention_mask, pixel_values, **how)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def own_logits(model: PreTrainedModel, row: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """(1, T, V) of one row without padding, (1, T): the whole of transformers' own forward again for every latent, with
    what it took for the ones before put into the output of its embeddings.

    Args:
        inputs: what the forward takes beside tokens.
    """
    filled: dict[int, Tensor] = {}

    def fill(module, args, embeds: Tensor) -> Tensor:
        for column, thought in filled.items():
            embeds = torch.cat([embeds[:, :column], thought[:, None], embeds[:, column + 1 :]], dim=1)
        return embeds

    handle = model.get_input_embeddings().register_forward_hook(fill)
    try:
        for column in (row[0] == LATENT).nonzero()[:, 0].tolist():
            filled[column] = model.model(row, use_cache=False, **inputs).last_hidden_state[:, column - 1]
        return model(row, use_cache=False, **inputs).logits
    finally:
        handle.remove()


def own_loss(model: PreTrainedModel, rows: Sequence[tuple[Tensor, Tensor, dict[str, Tensor]]]) -> Tensor:
    """Mean cross-entropy over all labelled positions of rows: (T,) tokens and labels, and inputs as of `own_logits`."""
    summed, count = torch.zeros(()), 0
    for ids, labels, inputs in rows:
        logits = own_logits(model, ids[None], inputs)[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        summed = summed + F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        count += int((labels[1:] != -100).sum())
    return summed / count


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model: PreTrainedModel, expected: dict[str, Tensor], tolerance: float) -> None:
    """Every parameter's gradient, relative to the largest entry of the expected one."""
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (actual[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-12)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"
