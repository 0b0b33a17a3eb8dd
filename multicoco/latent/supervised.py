"""Objectives that say of each thought what it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from multicoco.curriculum import IGNORE_INDEX
from multicoco.latent.objective import Asked, Objective, Supervised

if TYPE_CHECKING:
    from multicoco.latent.reasoner import LatentReasoner


class MeanEmbeddings(Objective):
    """A thought is the mean of the embeddings of the tokens that it stands for (C-MTP, arXiv:2607.16972).

    With e the mean and z what the column before makes of it, loss = LM + weight * mean over thoughts |z - e|^2 / |e|^2,
    e being a constant there, and an input as any other where it is fed.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def asked(self, reasoner: LatentReasoner, supervision: dict[str, Any]) -> Asked:
        stretches = supervision["stretches"]  # [B, K, S]
        embed: Any = reasoner.model.get_input_embeddings()
        is_token = (stretches != IGNORE_INDEX)[..., None]
        summed = embed(stretches.clamp(min=0)).masked_fill(~is_token, 0).sum(-2)
        return Asked(given=summed / is_token.sum(-2).clamp(min=1))

    def forward(self, reasoner: LatentReasoner, batch: Supervised) -> Tensor:
        passes, (rows, columns) = batch.passes, batch.passes.places.rows_and_columns
        wide = torch.promote_types(passes.embeds.dtype, torch.float32)
        target = passes.embeds[rows, columns].detach().to(wide)  # [N, D]
        thought = reasoner.thought_source(passes.hidden[rows, columns - 1], passes.places.k[rows, columns]).to(wide)
        error = (thought - target).square().sum(-1) / target.square().sum(-1).clamp(min=torch.finfo(wide).tiny)
        counted = batch.supervision["counted"][rows]
        of_thoughts: Tensor = error.masked_fill(~counted, 0).sum() / batch.supervision["divisors"][0]
        language = reasoner.language_loss(passes.hidden, batch.labels, batch.divisor, batch.labels_on_host)
        return language + self.weight * of_thoughts
