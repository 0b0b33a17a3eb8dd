"""Supervision of thoughts by what a decoder can read from them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multicoco.curriculum import IGNORE_INDEX
from multicoco.latent.head import AS_THEY_ARE, Rescaling, rescaling_of
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
        decoder: what reads and writes: a language model without its head; None: the one that is trained.
        head: of its own; None: that of the model that is trained.
        rescaling: of its own head's logits.
    """

    def __init__(
        self,
        weight: float,
        n_read: int,
        decoder: PreTrainedModel | None = None,
        head: nn.Module | None = None,
        rescaling: Rescaling = AS_THEY_ARE,
    ):
        super().__init__()
        self.weight = weight
        self.n_read = n_read
        self.decoder = decoder
        self.head = head
        self.cross_entropy = LabelledCrossEntropy(rescaling)

    def weights_of_others(self) -> dict[nn.Module, nn.Module]:
        return {} if self.head is None else {self.cross_entropy: self.head}

    def forward(self, reasoner: LatentReasoner, batch: Supervised) -> Tensor:
        thoughts, steps = self._read_and_write(batch)  # [W, R, D], [W, S]
        is_token = steps != IGNORE_INDEX
        decoder, embed, head, cross_entropy = self._reader(reasoner)
        hidden = decoder(
            inputs_embeds=torch.cat([thoughts, embed(steps.clamp(min=0))], dim=1),
            attention_mask=torch.cat([is_token.new_ones(thoughts.shape[:2]), is_token], dim=1).long(),
            use_cache=False,
        ).last_hidden_state
        is_token[-1, 0] = True  # of the row that writes nothing: the head is called as on other ranks, for a loss of 0
        summed = cross_entropy(hidden[:, self.n_read - 1 : -1][is_token], head, steps[is_token])
        written: Tensor = summed / batch.supervision["divisors"][0]
        language = reasoner.language_loss(batch.passes.hidden, batch.labels, batch.divisor, batch.labels_on_host)
        return language + self.weight * written

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

    def _reader(self, reasoner: LatentReasoner) -> tuple[PreTrainedModel, Any, Any, LabelledCrossEntropy]:
        """Decoder, embeddings, head and what computes with it."""
        decoder, model = self.decoder or reasoner.decoder, reasoner.model
        if self.head is None:
            return decoder, model.get_input_embeddings(), model.get_output_embeddings(), reasoner.cross_entropy
        return decoder, decoder.get_input_embeddings(), self.head, self.cross_entropy


def copied(model: PreTrainedModel, frozen: bool, n_layers: int | None) -> tuple[PreTrainedModel, nn.Module, Rescaling]:
    """A copy of the language model, of its head, and what is done to the logits.

    Args:
        frozen: whether it stays as it is.
        n_layers: it has the first so many; None: all.

    Raises:
        ValueError: the model has fewer.
    """
    decoder, head = copy.deepcopy((model.get_decoder(), model.get_output_embeddings()))  # they may share a weight
    if n_layers is not None:
        keep_first_layers(decoder, n_layers)
    for part in (decoder, head):
        part.requires_grad_(not frozen)
    return decoder, head, rescaling_of(model.config)
