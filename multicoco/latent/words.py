"""Thoughts that are words, several at once: the mean of their embeddings (C-MTP, arXiv:2607.16972)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from multicoco.curriculum import IGNORE_INDEX
from multicoco.latent.objective import Asked, Objective, Supervised

if TYPE_CHECKING:
    from multicoco.latent.reasoner import LatentReasoner


class Words(nn.Module):
    """Makes of a hidden state the mean embedding of the n words that it says: word j is the likeliest by the model's
    own head of the j-th state of W' gelu(W x + b) + b', which is n states long.

    Args:
        model: gives width and dtype, the head and the embeddings; these are no part of this module.
        nothing: the token that is said after the last word, and is no part of the mean unless it is said first.
        seed: of the initial weights.
    """

    def __init__(self, model: PreTrainedModel, n_words: int, nothing: int, seed: int = 0):
        super().__init__()
        embeddings: Any = model.get_input_embeddings()
        width, self.n_words, self.nothing = embeddings.weight.shape[1], n_words, nothing
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.heads = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, n_words * width))
        self.to(embeddings.weight.dtype)
        self._model = lambda: model  # an attribute would be a part

    def states(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., n, D), which the model's head reads."""
        states: Tensor = self.heads(hidden).unflatten(-1, (self.n_words, -1))
        return states

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        model = self._model()
        head: Any = model.get_output_embeddings()
        # [..., n], of logits before any cap: that could only make some of them equal
        words = head(self.states(hidden)).argmax(-1)
        is_word = words != self.nothing
        is_word[..., 0] = True
        embed: Any = model.get_input_embeddings()
        return mean_where(embed(words), is_word)


def mean_where(vectors: Tensor, counts: Tensor) -> Tensor:
    """(..., n, D), (..., n) bool -> (..., D), 0 where none counts."""
    mean: Tensor = vectors.masked_fill(~counts[..., None], 0).sum(-2) / counts.sum(-1, keepdim=True).clamp(min=1)
    return mean


class SayingWords(Objective):
    """The hidden state of which a thought is made says the tokens that it stands for (C-MTP, arXiv:2607.16972).

    loss = LM + weight * mean over thoughts and n words of -log p_j(s_j | x), with p_j what the model's head makes of
    the j-th state of `Words` of x, and s_j token j of the thought's stretch or, past its end, `nothing`. What thoughts
    are fed, the mean embeddings of their stretches, is known before any pass.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def asked(self, reasoner: LatentReasoner, supervision: dict[str, Any]) -> Asked:
        stretches = supervision["stretches"]  # [B, K, S]
        embed: Any = reasoner.model.get_input_embeddings()
        return Asked(given=mean_where(embed(stretches.clamp(min=0)), stretches != IGNORE_INDEX))

    def forward(self, reasoner: LatentReasoner, batch: Supervised) -> Tensor:
        passes, (rows, columns) = batch.passes, batch.passes.places.rows_and_columns  # of N thoughts
        source: Any = reasoner.thought_source
        words: Words = source.projection
        said = batch.supervision["stretches"][rows, passes.places.k[rows, columns]]  # [N, S]
        said = F.pad(said, (0, words.n_words - said.shape[1]), value=IGNORE_INDEX)
        targets = torch.where(said == IGNORE_INDEX, words.nothing, said)
        targets = targets.masked_fill(~batch.supervision["counted"][rows, None], IGNORE_INDEX)
        states = words.states(passes.hidden[rows, columns - 1])  # [N, n, D]
        head: Any = reasoner.model.get_output_embeddings()
        summed: Tensor = reasoner.cross_entropy(states.flatten(0, 1), head, targets.flatten())
        of_words: Tensor = summed / (batch.supervision["divisors"][0] * words.n_words)
        language: Tensor = reasoner.language_loss(passes.hidden, batch.labels, batch.divisor, batch.labels_on_host)
        return language + self.weight * of_words
