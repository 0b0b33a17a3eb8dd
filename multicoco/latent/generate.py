"""What follows the latent passes over a batch of prompts: generated text, or the likelihood of given texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from multicoco.curriculum import IGNORE_INDEX
from multicoco.latent.head import logits_of
from multicoco.latent.passes import Passes


def generate_after(
    model: PreTrainedModel, passes: Passes, generation_config: GenerationConfig | None, **options: Any
) -> Tensor:
    """transformers' `generate`, from the cache of left-padded prompts: (B * num_return_sequences, N) new tokens."""
    cache = passes.cache.to_dynamic(passes.length_before_last())  # generate itself runs the last column
    config = generation_config or model.generation_config
    expand = max(options.get(key) or getattr(config, key, None) or 1 for key in ("num_beams", "num_return_sequences"))
    cache.batch_repeat_interleave(expand)
    generating: Any = model  # `generate` comes from a mixin that the type does not show
    tokens: Tensor = generating.generate(
        inputs_embeds=passes.embeds,
        attention_mask=passes.visible,
        position_ids=passes.position_ids,  # not counted from the mask, which may hide columns that are there
        past_key_values=cache,
        generation_config=generation_config,
        **options,
    )
    return tokens


@torch.no_grad()
def log_likelihoods(model: PreTrainedModel, passes: Passes, input_ids: Tensor, labels: Tensor) -> Tensor:
    """By teacher forcing: the log-probability of a text after each left-padded prompt.

    Calls the same modules whatever the texts are, as ZeRO-3 needs.

    Args:
        input_ids: (B, N) texts, padded on the right.
        labels: (B, N), IGNORE_INDEX at what is given and not counted, padding among it.

    Returns: (B,), sums over the labelled tokens, at least fp32.
    """
    n_new = input_ids.shape[1]
    embed: Any = model.get_input_embeddings()
    later = torch.arange(1, n_new + 1, device=input_ids.device)
    hidden = model.get_decoder()(
        inputs_embeds=torch.cat([passes.embeds[:, -1:], embed(input_ids)], dim=1),
        attention_mask=torch.cat([passes.visible, passes.visible.new_ones(input_ids.shape)], dim=1),
        position_ids=torch.cat([passes.position_ids[..., -1:], passes.position_ids[..., -1:] + later], dim=-1),
        past_key_values=passes.cache.to_dynamic(passes.length_before_last()),
        use_cache=True,
    ).last_hidden_state[:, :-1]
    logits = logits_of(model)(hidden)  # [B, N, V]: a few columns
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    chosen: Tensor = log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return chosen.masked_fill(labels == IGNORE_INDEX, 0).sum(-1)
