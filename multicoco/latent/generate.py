"""What follows the latent passes over a batch of prompts: generated text, or the likelihood of given texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from multicoco.curriculum import IGNORE_INDEX
from multicoco.latent.branches import Branches, Tree
from multicoco.latent.cache import no_mask
from multicoco.latent.head import logits_of
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
    trees, asked = _planted(input_ids, labels)
    branches = Branches(trees, passes.cache, passes.visible)
    embeds = torch.cat([passes.embeds[:, -1:], model.get_input_embeddings()(branches.tokens[:, 1:])], dim=1)
    hidden = model.get_decoder()(
        inputs_embeds=embeds,
        attention_mask=no_mask(embeds),
        position_ids=passes.position_ids[..., -1:] + branches.depth,
        use_cache=False,
        segment=branches,
    ).last_hidden_state  # [B, M, D]
    text, place, token = asked.to(hidden.device).unbind(1)
    places, of_asked = torch.unique(place, return_inverse=True)
    logits = logits_of(model)(hidden.flatten(0, 1)[places])  # [U, V]: only where something is asked
    precision = torch.promote_types(logits.dtype, torch.float32)
    total = torch.cat([part.to(precision).logsumexp(-1) for part in logits.split(_AT_ONCE)])
    log_probs = logits[of_asked, token].to(precision) - total[of_asked]
    summed: Tensor = log_probs.new_zeros(labels[..., 0].numel()).index_add(0, text, log_probs)
    return summed.view(labels.shape[:-1])


def _planted(input_ids: Tensor, labels: Tensor) -> tuple[list[Tree], Tensor]:
    """Texts (B, ..., N) as a tree for each row; and (A, 3), of each labelled token the number of its text, that of the
    column that it is read off, counted through all rows, and its id."""
    trees = [Tree() for _ in input_ids]
    asked: list[tuple[int, int, int, int]] = []
    rows, wanted = (x.reshape(-1, x.shape[-1]).tolist() for x in (input_ids, labels))
    for text, (ids, of_text) in enumerate(zip(rows, wanted, strict=True)):
        row = text * len(trees) // len(rows)
        counted = [place for place, label in enumerate(of_text) if label != IGNORE_INDEX]
        columns = trees[row].add(ids[: counted[-1] + 1] if counted else ())
        asked += [(text, row, columns[place], of_text[place]) for place in counted]
    text_of, row_of, column, token = torch.tensor(asked, dtype=torch.long).view(-1, 4).unbind(1)
    width = max(len(tree.tokens) for tree in trees)
    return trees, torch.stack([text_of, row_of * width + column, token], dim=1)
