"""Small random models, and Coconut's forward pass in its plainest form: the whole sequence again for every latent."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
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
        text_config={"tie_word_embeddings": tied, **_TEXT, **kind, "num_hidden_layers": layers},
        image_token_id=IMAGE,
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=0.5,
        tie_word_embeddings=tied,
    )
    return InternVLForConditionalGeneration(config)


def qwen2(seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **_TEXT))


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **_TEXT))


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
    return model.lm_head(run(embeds))


def coconut_loss(model, input_ids, attention_mask, labels, pixel_values=None, **how) -> Tensor:
    """Mean next-token cross-entropy over the labelled positions; `how`: as of `coconut_logits`."""
    logits = coconut_logits(model, input_ids, attention_mask, pixel_values, **how)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model: PreTrainedModel, expected: dict[str, Tensor], tolerance: float) -> None:
    """Every parameter's gradient, relative to the largest entry of the expected one."""
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (actual[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-12)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"
