"""Supervision of thoughts by what a decoder can read from them."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from multicoco.curriculum import IGNORE_INDEX
from multicoco.latent.cache import ATTENTION_NAME, Segment, StaticKVCache, no_mask
from multicoco.latent.kinds import rescaling_of
from multicoco.latent.loss import LabelledCrossEntropy
from multicoco.latent.objective import NOTHING, Asked, Objective, Supervised
from multicoco.latent.rescaling import AS_THEY_ARE, Rescaling
from multicoco.models.layers import keep_first_layers
from multicoco.models.lora import without_lora
from multicoco_kernels import BufferPool, coordinates, send

if TYPE_CHECKING:
    from multicoco.latent.reasoner import LatentReasoner


class StepDecoder(Objective):
    """SIM-CoT (Wei et al. 2025, arXiv:2509.20317): a second decoder reads thoughts and must write what they replace.

    loss = what it is added to + weight * mean over the tokens s_i of all steps of -log p(s_i | z, s_1 .. s_i-1), z the
    thoughts of the step as they are fed, in front of the step's embeddings. All steps of a batch are rows of one call
    of the decoder.

    Args:
        n_read: thoughts of a step that are read: its last ones.
        besides: what it is added to; None: the language model's loss. Of the divisors, the first one is the steps' own.
        decoder: what reads and writes: a language model without its head; None: the one that is trained.
        head: of its own; None: that of the model that is trained.
        rescaling: of its own head's logits.
    """

    def __init__(
        self,
        weight: float,
        n_read: int,
        besides: Objective | None = None,
        decoder: PreTrainedModel | None = None,
        head: nn.Module | None = None,
        rescaling: Rescaling = AS_THEY_ARE,
    ):
        super().__init__()
        self.weight = weight
        self.n_read = n_read
        self.besides = besides
        self.decoder = decoder
        self.head = head
        self.cross_entropy = LabelledCrossEntropy(rescaling)
        self.cache_buffers: defaultdict[int, BufferPool] = defaultdict(BufferPool)  # by layer
        if decoder is not None:
            decoder.set_attn_implementation(ATTENTION_NAME)

    def runs(self, model: PreTrainedModel) -> PreTrainedModel:
        decoder: PreTrainedModel = self.decoder or model.get_decoder()
        return decoder

    def weights_of_others(self) -> dict[nn.Module, nn.Module]:
        return {} if self.head is None else {self.cross_entropy: self.head}

    def asked(self, reasoner: LatentReasoner, supervision: dict[str, Any]) -> Asked:
        return NOTHING if self.besides is None else self.besides.asked(reasoner, supervision)

    def forward(self, reasoner: LatentReasoner, batch: Supervised) -> Tensor:
        divisors = batch.supervision["divisors"]
        written: Tensor = self._written(reasoner, batch) / divisors[0]
        if self.besides is None:
            loss = reasoner.language_loss(batch.passes.hidden, batch.labels, batch.divisor, batch.labels_on_host)
        else:
            others = batch.supervision | {"divisors": divisors[1:]}
            loss = self.besides(reasoner, replace(batch, supervision=others))
        return loss + self.weight * written

    def _written(self, reasoner: LatentReasoner, batch: Supervised) -> Tensor:
        """The summed loss of all steps, W of up to S tokens, each after R thoughts. A last row writes nothing: the
        decoder is called whatever the batch holds."""
        thoughts, steps, is_token = self._read_and_write(batch)  # [W, R, D], [W, S], [W, S] on the host if known there
        decoder, embed, head, cross_entropy = self._reader(reasoner)
        embeds = torch.cat([thoughts, embed(steps.clamp(min=0))], dim=1)
        is_key = F.pad(is_token, (self.n_read, 0), value=True)
        cache = StaticKVCache(send(is_key, embeds.device), reasoner.kernel, self.cache_buffers, is_key)
        hidden = decoder(
            inputs_embeds=embeds,
            attention_mask=no_mask(embeds),
            use_cache=False,
            segment=Segment(cache, 0, previous=None),
        ).last_hidden_state
        is_token[-1, 0] = True  # of the last row: the head is called as on other ranks, for a loss of 0
        where = coordinates(is_token, embeds.device)
        summed: Tensor = cross_entropy(hidden[:, self.n_read - 1 : -1][where], head, steps[where])
        return summed

    def _read_and_write(self, batch: Supervised) -> tuple[Tensor, Tensor, Tensor]:
        """Of all steps, and of a last row that writes nothing: what is read, (W, R, D); what is to be written, (W, S);
        where tokens of that are, (W, S)."""
        embeds, stretches = batch.passes.embeds, batch.supervision["stretches"]  # [B, T, D], [B, K, S]
        known, counted = batch.known("stretches"), batch.known("counted")
        # [B, K], the thoughts after which a step is written
        writes = (known[..., 0] != IGNORE_INDEX) & counted[:, None]
        rows, thoughts = coordinates(writes, embeds.device)  # [W - 1] each
        last_read = batch.passes.places.columns_of(stretches.shape[1])[rows, thoughts]
        read = embeds[rows[:, None], last_read[:, None] + torch.arange(1 - self.n_read, 1, device=embeds.device)]
        nothing = torch.full_like(stretches[0, :1], IGNORE_INDEX)
        return (
            torch.cat([read, embeds[:1, :1].expand(1, self.n_read, -1)]),
            torch.cat([stretches[rows, thoughts], nothing]),
            F.pad(known[writes] != IGNORE_INDEX, (0, 0, 0, 1)),
        )

    def _reader(self, reasoner: LatentReasoner) -> tuple[PreTrainedModel, Any, Any, LabelledCrossEntropy]:
        """Decoder, embeddings, head and what computes with it."""
        model, decoder = reasoner.model, self.runs(reasoner.model)
        if self.head is None:
            return decoder, model.get_input_embeddings(), model.get_output_embeddings(), reasoner.cross_entropy
        return decoder, decoder.get_input_embeddings(), self.head, self.cross_entropy


def copied(model: PreTrainedModel, frozen: bool, n_layers: int | None) -> tuple[PreTrainedModel, nn.Module, Rescaling]:
    """A copy of the language model, of its head, and what is done to the logits. What the model has of adapters is
    merged into the copy's own weights.

    Args:
        frozen: whether it stays as it is.
        n_layers: it has the first so many; None: all.

    Raises:
        ValueError: the model has fewer.
    """
    parts = nn.ModuleList([model.get_decoder(), model.get_output_embeddings()])
    copies: Any = without_lora(copy.deepcopy(parts))  # of both together, as they may share a weight
    decoder, head = copies
    if n_layers is not None:
        keep_first_layers(decoder, n_layers)
    for part in (decoder, head):
        part.requires_grad_(not frozen)
    return decoder, head, rescaling_of(model.config)
