"""Supervision of thoughts by what a decoder can read from them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multicoco.curriculum import IGNORE_INDEX
from multicoco.latent.head import rescaling_of
from multicoco.latent.loss import LabelledCrossEntropy
from multicoco.latent.objective import Objective, Supervised
from multicoco.models.layers import keep_first_layers

if TYPE_CHECKING:
    from multicoco.latent.reasoner import LatentReasoner


class StepDecoder(Objective):
    """SIM-CoT (Wei et al. 2025, arXiv:2509.20317): a second decoder reads thoughts and must write what they replace.

    loss = LM + weight * mean over the tokens s_i of all steps of -log p(s_i | z, s_1 .. s_i-1), z the thoughts of the
    step as they are fed, in front of the step's embeddings. All steps of a batch are rows of one call of the decoder.

    Args:
        n_read: thoughts of a step that are read: its last ones.
        copied_from: the model whose language model the decoder is a copy of; None: it is the model that is trained.
        frozen: whether a copy stays as it is.
        n_layers: of a copy, which has the first so many; None: all.

    Raises:
        ValueError: the model has fewer.
    """

    def __init__(
        self,
        weight: float,
        n_read: int,
        copied_from: PreTrainedModel | None,
        frozen: bool = False,
        n_layers: int | None = None,
    ):
        super().__init__()
        self.weight = weight
        self.n_read = n_read
        self.decoder: PreTrainedModel | None = None
        if copied_from is not None:
            own = copied_from.get_decoder(), copied_from.get_output_embeddings()
            self.decoder, self.head = copy.deepcopy(own)  # together: they may share a weight
            if n_layers is not None:
                keep_first_layers(self.decoder, n_layers)
            for part in (self.decoder, self.head):
                part.requires_grad_(not frozen)
            self.cross_entropy = LabelledCrossEntropy(rescaling_of(copied_from.config))

    def weights_of_others(self) -> dict[nn.Module, nn.Module]:
        return {} if self.decoder is None else {self.cross_entropy: self.head}

    def forward(self, reasoner: LatentReasoner, batch: Supervised) -> Tensor:
        thoughts, steps = self._read_and_write(batch)  # [W, R, D], [W, S]
        is_token = steps != IGNORE_INDEX
        decoder, head, cross_entropy = self._reader(reasoner)
        embed: Any = decoder.get_input_embeddings()
        hidden = decoder(
            inputs_embeds=torch.cat([thoughts, embed(steps.clamp(min=0))], dim=1),
            attention_mask=torch.cat([is_token.new_ones(thoughts.shape[:2]), is_token], dim=1).long(),
            use_cache=False,
        ).last_hidden_state
        is_token[-1, 0] = True  # of the row that writes nothing: the head is called as on other ranks, for a loss of 0
        written: Tensor = cross_entropy(hidden[:, self.n_read - 1 : -1][is_token], head, steps[is_token])
        language = reasoner.language_loss(batch.passes.hidden, batch.labels, batch.divisor, batch.labels_on_host)
        return language + self.weight * written / batch.supervision["divisors"][0]

    def _read_and_write(self, batch: Supervised) -> tuple[Tensor, Tensor]:
        """What is read, (W, R, D), and what is to be written, (W, S), of all steps, and of a last row that writes
        nothing: the decoder is called whatever the batch holds."""
        embeds, stretches = batch.passes.embeds, batch.supervision["stretches"]  # [B, K, S]
        places = batch.passes.places
        rows, columns = places.rows_and_columns
        fed, steps = embeds[rows, columns], stretches[rows, places.k[rows, columns]]  # [N, D], [N, S], both row by row
        counted = batch.supervision["counted"][rows]
        writes = ((steps[:, 0] != IGNORE_INDEX) & counted).nonzero()[:, 0]
        thoughts = fed[writes[:, None] + torch.arange(1 - self.n_read, 1, device=fed.device)]
        nothing = torch.full_like(stretches[0, :1], IGNORE_INDEX)
        return (
            torch.cat([thoughts, embeds[:1, :1].expand(1, self.n_read, -1)]),
            torch.cat([steps[writes], nothing]),
        )

    def _reader(self, reasoner: LatentReasoner) -> tuple[PreTrainedModel, Any, LabelledCrossEntropy]:
        if self.decoder is None:
            return reasoner.decoder, reasoner.model.get_output_embeddings(), reasoner.cross_entropy
        return self.decoder, self.head, self.cross_entropy
