"""Latent reasoning (Coconut, Hao et al. 2024, arXiv:2412.06769) by plain transformers, for decoder-only language models
and vision-language models. It is read by transformers itself, and needs torch, transformers and safetensors alone:

    model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True)

The latent tokens of a prompt are thoughts, not words: each is fed the model's last hidden state of the column before
it. So the language model runs once up to the first latent column of the batch, then from each to the next, and
transformers' own `generate` goes on from the cache with all of its options.
"""

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import cached_file

LATENT_TOKEN_ID = -1  # of <|latent|>
HAS_PROJECTION = False  # whether thoughts go through the weights of thoughts.safetensors before they are fed


@torch.no_grad()
def generate(
    model: Any,
    inputs: Tensor | None = None,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    thoughts_from: str | None = None,
    **kwargs: Any,
) -> Any:
    """What `model.generate` returns: prompts and new tokens, (B, T + N).

    Args:
        inputs, input_ids: (B, T) prompts, one of the two, padded on the left.
        attention_mask: (B, T), 0 at padding; without one, nothing is padding.
        thoughts_from: folder or hub id that thoughts.safetensors is of, if the model was loaded from another one.
        kwargs: image inputs as the model's processor makes them, and options of `generate`.

    Raises:
        ValueError: a latent token has no token before it, or images stand where transformers would lose them.
    """
    ids = inputs if input_ids is None else input_ids
    if ids is None:
        raise ValueError("give the prompts as input_ids")
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    is_latent = (ids == LATENT_TOKEN_ID) & mask.bool()  # [B, T]
    if (is_latent[:, :1].any() or (is_latent[:, 1:] & ~mask[:, :-1].bool()).any()).item():
        raise ValueError("a latent token needs a token before it, whose hidden state it is fed")
    taken = signature(model.base_model.forward).parameters.keys()
    images = {name: kwargs.pop(name) for name in list(kwargs) if name in taken and isinstance(kwargs[name], Tensor)}
    embeds, positions, further = enter(model, ids, mask, images)
    project = projection(model, thoughts_from) if is_latent.any() else None

    decoder, length = model.get_decoder(), ids.shape[1]
    cache = DynamicCache()
    hidden = embeds  # of the pass before; nobody reads it in the first
    latent_columns = is_latent.any(0).nonzero()[:, 0].tolist()
    # generate itself runs the last column
    for start, end in zip([0, *latent_columns], [*latent_columns, length - 1], strict=True):
        if project is not None and start in latent_columns:
            thought = torch.where(is_latent[:, start, None], project(hidden[:, -1]), embeds[:, start])
            embeds = torch.cat([embeds[:, :start], thought[:, None], embeds[:, start + 1 :]], dim=1)
        if start < end:
            hidden = decoder(
                inputs_embeds=embeds[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions[..., start:end],
                past_key_values=cache,
                use_cache=True,
                **further(start, end),
            ).last_hidden_state
    if further(length - 1, length):
        raise ValueError("a prompt cannot end with an image: add text")
    config = kwargs.get("generation_config") or model.generation_config
    cache.batch_repeat_interleave(
        max(kwargs.get(key) or getattr(config, key, None) or 1 for key in ("num_beams", "num_return_sequences"))
    )
    # of the class: the model's own may have been replaced by this function
    return type(model).generate(
        model,
        input_ids=ids,
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        **kwargs,
    )


class AtTheDoor(Exception):
    """Of the language model."""


def enter(
    model: Any, ids: Tensor, mask: Tensor, images: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Callable[[int, int], dict[str, Any]]]:
    """What the language model is given for the prompts: the model itself puts images in place and counts positions, and
    is stopped at the door of its language model.

    Returns: (B, T, D) embeddings; positions, (B, T) or with axes in front; and what else there is in columns start to
        end of the prompts, such as features that are added after the first layers (Qwen3-VL).
    """
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    if not images:
        return model.get_input_embeddings()(ids), positions, lambda start, end: {}
    if "mm_token_type_ids" in signature(model.base_model.forward).parameters:
        images = {"mm_token_type_ids": (ids == model.config.image_token_id).int(), **images}
    given: dict[str, Any] = {}

    def stop(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given.update(kwargs)
        raise AtTheDoor

    handle = model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model.base_model(input_ids=ids, attention_mask=mask, **images)
    except AtTheDoor:
        pass
    finally:
        handle.remove()
    embeds, own_positions = given.pop("inputs_embeds"), given.pop("position_ids", None)
    at_image, features = given.pop("visual_pos_masks", None), given.pop("deepstack_visual_embeds", None)
    given.pop("attention_mask", None)
    if unknown := sorted(name for name, value in given.items() if isinstance(value, Tensor)):
        raise ValueError(f"{model.config.model_type} gives its language model {', '.join(unknown)}, which is not known")

    def further(start: int, end: int) -> dict[str, Any]:
        if at_image is None or not at_image[:, start:end].any():
            return {}
        column = at_image.nonzero()[:, 1]  # of every image token, in the order of the features
        here = (column >= start) & (column < end)
        return {
            "visual_pos_masks": at_image[:, start:end],
            "deepstack_visual_embeds": [of_layer[here] for of_layer in features],
        }

    return embeds, positions if own_positions is None else own_positions, further


def projection(model: Any, thoughts_from: str | None) -> Callable[[Tensor], Tensor]:
    """What is made of a thought before it is fed, (B, D) -> (B, D): a linear layer or two with gelu between them, then
    a LayerNorm; and the mean norm of the embeddings. Either may be missing, or both. Where the layers are heads,
    they give n states, of each of which the model's head says a word: the thought is the mean of their embeddings."""
    if not HAS_PROJECTION:
        return lambda thought: thought
    source = thoughts_from or model.name_or_path
    try:
        file = cached_file(source, "thoughts.safetensors")
    except OSError as error:
        raise ValueError(
            f"thoughts.safetensors is not in {source!r}, which the model was loaded from: give thoughts_from, the "
            "folder or hub id that this code came with"
        ) from error
    table = model.get_input_embeddings().weight  # in whose precision the model was loaded, not that of training
    weights = {name.removeprefix("projection."): x.to(table.device, table.dtype) for name, x in read(file).items()}
    norm = weights.pop("target_norm", None)
    layers = sorted({name.rpartition(".")[0] for name in weights})

    def project(thought: Tensor) -> Tensor:
        for i, layer in enumerate(layers):
            weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
            if weight.ndim == 1:
                thought = F.layer_norm(thought, weight.shape, weight, bias)
            else:
                thought = F.linear(F.gelu(thought) if i else thought, weight, bias)
        if layers and layers[0].startswith("heads"):
            return mean_of_words(model, thought.unflatten(-1, (-1, model.get_input_embeddings().weight.shape[1])))
        if norm is None:
            return thought
        wide = thought.to(torch.promote_types(thought.dtype, torch.float32))
        own = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp(min=torch.finfo(wide.dtype).eps)
        scaled: Tensor = thought * (norm / own)
        return scaled.to(thought.dtype)

    return project


def mean_of_words(model: Any, states: Tensor) -> Tensor:
    """(B, n, D) -> (B, D); the latent token says that there is no further word."""
    words = model.get_output_embeddings()(states).argmax(-1)  # [B, n]
    is_word = words != LATENT_TOKEN_ID
    is_word[:, 0] = True
    embeds = model.get_input_embeddings()(words).masked_fill(~is_word[..., None], 0)
    mean: Tensor = embeds.sum(1) / is_word.sum(1, keepdim=True)
    return mean


@lru_cache(maxsize=1)
def read(file: str) -> dict[str, Tensor]:
    return load_file(file)
