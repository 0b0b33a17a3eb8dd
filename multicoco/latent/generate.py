"""What follows the latent passes over a batch of prompts: generated text, or the likelihood of given texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from multicoco.curriculum import IGNORE_INDEX
from multicoco.latent.branches import Branches, Tree
from multicoco.latent.cache import no_mask
from multicoco.latent.passes import Passes

_AT_ONCE = 64  # positions whose words are summed up in fp32


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
    """By teacher forcing: the log-probabilities of texts after each left-padded prompt, of all of them in one pass.

    Calls the same modules whatever the texts are, as ZeRO-3 needs. They are read on the host.

    Args:
        input_ids: (B, ..., N) texts, padded on the right.
        labels: (B, ..., N), IGNORE_INDEX at what is given and not counted, padding among it.

    Returns: (B, ...), sums over the labelled tokens, at least fp32.
    """
    passes.length_before_last()  # refuses prompts that the last column's embedding alone does not continue
    trees = [Tree() for _ in input_ids]
    asked: list[tuple[int, int, int, int]] = []  # of labelled tokens: row, column, number of the text, token
    texts = zip(*(x.reshape(len(x), -1, x.shape[-1]).tolist() for x in (input_ids, labels)), strict=True)
    for row, of_row in enumerate(texts):
        for number, (ids, wanted) in enumerate(zip(*of_row, strict=True)):
            counted = [place for place, label in enumerate(wanted) if label != IGNORE_INDEX]
            columns = trees[row].add(ids[: counted[-1] + 1] if counted else ())
            asked += [(row, columns[place], number, wanted[place]) for place in counted]
    branches = Branches(trees, passes.cache, passes.visible)
    embeds = torch.cat([passes.embeds[:, -1:], model.get_input_embeddings()(branches.tokens[:, 1:])], dim=1)
    hidden = model.get_decoder()(
        inputs_embeds=embeds,
        attention_mask=no_mask(embeds),
        position_ids=passes.position_ids[..., -1:] + branches.depth,
        use_cache=False,
        segment=branches,
    ).last_hidden_state
    rows, columns, numbers, tokens = torch.tensor(asked, dtype=torch.long).view(-1, 4).unbind(1)
    places, of_asked = torch.unique(rows * hidden.shape[1] + columns, return_inverse=True)
    device = hidden.device
    logits = model.get_output_embeddings()(hidden.flatten(0, 1)[places.to(device)])  # [U, V]: where anything is asked
    precision = torch.promote_types(logits.dtype, torch.float32)
    total = torch.cat([part.to(precision).logsumexp(-1) for part in logits.split(_AT_ONCE)])  # [U]
    log_probs = logits[of_asked.to(device), tokens.to(device)].to(precision) - total[of_asked.to(device)]
    summed = log_probs.new_zeros(labels[..., 0].numel())
    text = rows * (len(summed) // len(labels)) + numbers
    return summed.index_add(0, text.to(device), log_probs).view(labels.shape[:-1])
