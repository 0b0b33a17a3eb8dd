"""Greedy decoding of prompts that come in batches: rows that have ended leave, and the next prompts join those that are
left, so that what is computed is computed for somebody."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from multicoco.latent.head import logits_of
from multicoco.latent.passes import Passes


class GreedyAnswers:
    """Answers that are being written; their tokens are those of `generate_after`, each row's whatever the others are.

    How often the model is called depends on the rows, which ZeRO-3 does not allow on several ranks.

    Args:
        max_new_tokens: of an answer.
        end_token_ids: what ends one.
        not_first: what none begins with.
    """

    visible: Tensor  # (B, T) the columns of the cache, and the one that is next
    positions: Tensor  # (B, 1), or with further axes in front, of the next column
    embeds: Tensor  # (B, 1, D) likewise

    def __init__(
        self, model: PreTrainedModel, max_new_tokens: int, end_token_ids: Sequence[int], not_first: Sequence[int] = ()
    ):
        self.model = model
        self.logits = logits_of(model)
        self.max_new_tokens = max_new_tokens
        self.ends, self.not_first = torch.tensor(end_token_ids), torch.tensor(not_first, dtype=torch.long)
        self.said: dict[int, list[int]] = {}  # of each row, in their order in the batch, by what it is called
        self.cache = DynamicCache()

    def __len__(self) -> int:
        return len(self.said)

    def join(self, passes: Passes, rows: Sequence[int], names: Sequence[int]) -> None:
        """Rows of a batch of left-padded prompts, perhaps none of them, begin to be answered, by names that none has
        that is there."""
        if not rows:
            return
        cache = passes.cache.to_dynamic(passes.length_before_last())
        chosen = torch.tensor(rows, device=passes.embeds.device)
        cache.batch_select_indices(chosen)
        visible, positions = passes.visible[chosen], passes.position_ids[..., chosen, -1:]
        embeds = passes.embeds[chosen, -1:]
        if self.said:
            self._forget_empty_columns()
            length = max(visible.shape[1], self.visible.shape[1])
            both = zip(_keys_and_values(self.cache), _keys_and_values(cache), strict=True)
            cache = DynamicCache(
                [(_stack(k, k2, length - 1, dim=2), _stack(v, v2, length - 1, dim=2)) for (k, v), (k2, v2) in both]
            )
            visible = _stack(self.visible, visible, length, dim=1)
            positions, embeds = torch.cat([self.positions, positions], -2), torch.cat([self.embeds, embeds])
        self.cache, self.visible, self.positions, self.embeds = cache, visible, positions, embeds
        self.said |= {name: [] for name in names}

    def _forget_empty_columns(self) -> None:
        """Those that only rows have seen that are gone."""
        first = int(self.visible.any(0).long().argmax())
        self.visible = self.visible[:, first:]
        layers = _keys_and_values(self.cache)
        self.cache = DynamicCache([(keys[:, :, first:], values[:, :, first:]) for keys, values in layers])

    @torch.no_grad()
    def step(self) -> dict[int, list[int]]:
        """One token for every row. Returns those that have ended, with their tokens, the one that ends it included."""
        hidden = self.model.get_decoder()(
            inputs_embeds=self.embeds,
            attention_mask=self.visible,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        logits = self.logits(hidden[:, -1])
        begins = torch.tensor([not tokens for tokens in self.said.values()], device=logits.device)
        hindered = torch.zeros_like(logits[0], dtype=torch.bool).index_fill(0, self.not_first.to(logits.device), True)
        tokens = logits.masked_fill(begins[:, None] & hindered, -torch.inf).argmax(-1)
        has_ended = torch.isin(tokens, self.ends.to(tokens.device)).tolist()
        ended, staying = {}, []
        for place, (name, token) in enumerate(zip(list(self.said), tokens.tolist(), strict=True)):
            self.said[name].append(token)
            if has_ended[place] or len(self.said[name]) == self.max_new_tokens:
                ended[name] = self.said.pop(name)
            else:
                staying.append(place)
        if ended and staying:
            left = torch.tensor(staying, device=tokens.device)
            self.cache.batch_select_indices(left)
            tokens, self.visible, self.positions = tokens[left], self.visible[left], self.positions[..., left, :]
        self.embeds = self.model.get_input_embeddings()(tokens)[:, None]
        self.visible = torch.cat([self.visible, self.visible.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions + 1
        return ended


def _keys_and_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """(B, H, T, D) each, of every layer."""
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _stack(first: Tensor, second: Tensor, length: int, dim: int) -> Tensor:
    """One batch under the other, each with 0 in front in a dimension of columns, which is to be so long."""
    behind = [0, 0] * (first.dim() - 1 - dim)
    return torch.cat([pad(x, [*behind, length - x.shape[dim], 0]) for x in (first, second)])
