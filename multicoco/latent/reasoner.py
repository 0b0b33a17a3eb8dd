"""Coconut's latent passes: the language model runs segment by segment, each latent embedding being the model's own
last hidden state of the column before it (Hao et al. 2024, arXiv:2412.06769, section 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import ModelOutput

from multicoco.curriculum import IGNORE_INDEX
from multicoco.data.features import FEATURES
from multicoco.latent.cache import ATTENTION_NAME, Segment, StaticKVCache, no_mask, rotary_tables
from multicoco.latent.columns import latent_columns, order, places
from multicoco.latent.controls import GaussianThoughts
from multicoco.latent.generate import Passes, generate_after
from multicoco.latent.interventions import UNTOUCHED, Intervened
from multicoco.latent.kinds import check_supported
from multicoco.latent.loss import LabelledCrossEntropy
from multicoco.latent.objective import Objective, Supervised
from multicoco.latent.thoughts import ThoughtSource, constant_before_last, hidden_state, put
from multicoco.latent.weight_gradients import stack_weight_gradients, stacked_columns
from multicoco.models.families import family_of
from multicoco_kernels import KERNELS, BufferPool


@dataclass
class LatentOutput(ModelOutput):
    """What `LatentReasoner.forward` returns.

    Attributes:
        loss: scalar, or None without labels.
        thoughts: (B, C, D), what was fed to the C latent columns of the batch; 0 in rows not latent there.
        logits: (B, T, V), or None unless asked for.
    """

    loss: Tensor | None = None
    thoughts: Tensor | None = None
    logits: Tensor | None = None


def split_columns(latent_columns: list[int], length: int, n_passes: int | None = None) -> list[int]:
    """The first columns of the passes over a sequence: 0, every latent column and, up to n_passes, further ones.

    Splitting a causal sequence anywhere changes nothing, so passes that are only there to make up the number
    take single columns, first those after the last latent column, then those before it.

    Raises:
        ValueError: n_passes is too small for the latent columns or too large for the sequence.
    """
    starts = {0, *latent_columns}
    if n_passes is not None:
        if len(starts) > n_passes:
            raise ValueError(
                f"{len(latent_columns)} latent columns need {len(starts)} passes, n_passes is {n_passes}: "
                "align the rows at their first latent token, or raise n_passes"
            )
        if n_passes > length:
            raise ValueError(f"{n_passes} passes need as many columns, the batch has {length}: pad it")
        last = max(starts)
        spare = [column for column in (*range(last + 1, length), *range(last - 1, 0, -1)) if column not in starts]
        starts.update(spare[: n_passes - len(starts)])
    return sorted(starts)


def tap(before: Tensor | None, layers: Sequence[Tensor], columns: Tensor) -> Tensor:
    """(B, M, D): of each row, the hidden states that M layers have given in a column of one of the passes so far.

    Args:
        before: what the passes before have given.
        layers: (B, S, D) each, of this pass.
        columns: (B,), of the pass; past its ends for rows whose column is in another one.
    """
    length = layers[0].shape[1]
    index = columns.clamp(0, length - 1)[:, None, None].expand(-1, 1, layers[0].shape[2])
    here = torch.cat([layer.gather(1, index) for layer in layers], dim=1)
    is_here = ((columns >= 0) & (columns < length))[:, None, None]
    return torch.where(is_here, here, torch.zeros_like(here) if before is None else before)


class LatentReasoner(nn.Module):
    """A causal or vision-language model that reasons in latent space, for plain PyTorch and DeepSpeed alike.

    A position is latent where `input_ids == latent_token_id`. Rows may differ in the number of latent tokens and in
    where they stand; a row's result does not depend on the rest of its batch. Columns between two latent columns
    are one pass, so rows aligned at their first (or last) latent token need K + 1 passes for at most K of them.

    Args:
        model: of a family in `multicoco.models.families`.
        latent_token_id: the id of `<|latent|>`; None where no position is latent.
        kernel: implementation of the cached attention, one of `multicoco_kernels.KERNELS`.
        thoughts: what a latent position is fed; Coconut's last hidden state by default.
        fixed_thoughts: what positions hold that wait for no pass; with a latent_token_id of None.
        gradient_passes: through how many of its last passes a row's gradient goes, from thought to pass; None: all.
        objective: the loss of a batch with `supervision`, instead of the language model's.

    Raises:
        ValueError: an unknown kernel, or the model's attention or head is of a kind the passes do not reproduce.
        UserError: the model is of no known family.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        latent_token_id: int | None,
        kernel: str = "auto",
        thoughts: ThoughtSource = hidden_state,
        fixed_thoughts: GaussianThoughts | None = None,
        gradient_passes: int | None = None,
        objective: Objective | None = None,
    ):
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"kernel {kernel!r} is not one of {', '.join(KERNELS)}")
        check_supported(model.config)
        self.model = model
        self.family = family_of(model.config)
        self.latent_token_id = latent_token_id
        self.kernel = kernel
        self.thought_source = thoughts
        self.fixed_thoughts = fixed_thoughts
        self.gradient_passes = gradient_passes
        self.objective = objective
        self.cache_buffers = BufferPool()
        self.cross_entropy = LabelledCrossEntropy()
        self.decoder.set_attn_implementation(ATTENTION_NAME)
        if self.decoder.config._attn_implementation != ATTENTION_NAME:
            raise ValueError(f"{model.config.model_type} does not let its attention be replaced")
        stack_weight_gradients(self.decoder)

    @property
    def decoder(self) -> PreTrainedModel:
        """The language model without its head."""
        decoder: PreTrainedModel = self.model.get_decoder()
        return decoder

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        n_passes: int | None = None,
        loss_divisor: Tensor | float | None = None,
        return_logits: bool = False,
        seeds: Tensor | None = None,
        supervision: dict[str, Tensor] | None = None,
        on_host: Mapping[str, Tensor] | None = None,
        **inputs: Tensor,
    ) -> LatentOutput:
        """Runs the latent passes and, with labels, the next-token loss or the objective's.

        Args:
            input_ids, attention_mask: (B, T); padding may be on either side.
            labels: (B, T), IGNORE_INDEX where there is no loss; shifted inside.
            position_ids: (B, T); the family's by default.
            n_passes: run exactly that many passes, so that every rank and step calls the modules alike.
            loss_divisor: what the summed loss is divided by; the number of labelled positions by default.
            return_logits: also compute (B, T, V) logits.
            seeds: (B,) of the rows, on the CPU; only `fixed_thoughts` reads them, and needs them.
            supervision: what the objective asks for beside the labels.
            on_host: input_ids, attention_mask and labels once more, on the CPU: with them, nothing is read from the
                device.
            inputs: what the family's models take beside tokens (its `input_names`), of all rows in order; for InternVL
                pixel_values, (N, 3, H, W) image tiles. Or what is kept of the images (`Family.kept`).

        Raises:
            TypeError: the family has no such input.
            ValueError: more latent columns than n_passes allows, or a latent token without a token before it.
        """
        objective = self.objective if supervision else None
        passes = self.run_passes(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            n_passes=n_passes,
            seeds=seeds,
            intervened=UNTOUCHED,
            given=objective.given(self, supervision) if objective and supervision else None,
            tapped=objective.tapped(supervision) if objective and supervision else None,
            on_host=on_host,
            **inputs,
        )
        loss, labels_on_host = None, on_host.get("labels") if on_host else None
        if labels is not None and objective and supervision:
            is_latent = self._is_latent(**(on_host or {"input_ids": input_ids, "attention_mask": attention_mask}))
            latent = places(is_latent, input_ids.device)
            loss = objective(self, Supervised(passes, latent, labels, loss_divisor, supervision, labels_on_host))
        elif labels is not None:
            loss = self.language_loss(passes.hidden, labels, loss_divisor, labels_on_host)
        logits = self.model.get_output_embeddings()(passes.hidden) if return_logits else None
        return LatentOutput(loss=loss, thoughts=passes.thoughts, logits=logits)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        n_passes: int | None = None,
        seeds: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **inputs_and_options: Any,
    ) -> Tensor:
        """Latent passes over the prompts, then transformers' `generate` from their cache.

        Args: as for `forward`; rows must be left-padded. `generation_config` and what is no input of the family are
            transformers'.

        Returns:
            (B * num_return_sequences, N) ids of the new tokens only.
        """
        names = inputs_and_options.keys() & {*self.family.input_names, FEATURES}
        inputs = {name: inputs_and_options.pop(name) for name in names}
        passes = self.run_passes(input_ids, attention_mask, n_passes=n_passes, seeds=seeds, **inputs)
        return generate_after(self.model, passes, generation_config, **inputs_and_options)

    def run_passes(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        position_ids: Tensor | None = None,
        n_passes: int | None = None,
        seeds: Tensor | None = None,
        intervened: Intervened = UNTOUCHED,
        given: Tensor | None = None,
        tapped: Tensor | None = None,
        on_host: Mapping[str, Tensor] | None = None,
        **inputs: Tensor,
    ) -> Passes:
        """The passes alone, from which `latent.generate` goes on.

        Args: as for `forward`; `intervened` is what is done to the thoughts; `given` and `tapped` as of `Objective`.

        Raises: as `forward`; ValueError also for thoughts to be hidden where a gradient is wanted, or where the
            columns end with one.
        """
        if intervened.hides and torch.is_grad_enabled():
            raise ValueError("thoughts are hidden at evaluation only: call it under torch.no_grad()")
        if unknown := inputs.keys() - {*self.family.input_names, FEATURES}:
            raise TypeError(f"{self.model.config.model_type} takes no {', '.join(sorted(unknown))}")
        is_latent = known = self._is_latent(input_ids, attention_mask)  # [B, T]
        host = on_host or {"input_ids": input_ids, "attention_mask": attention_mask}
        asked = known_on_host = self._is_latent(**host) if on_host else is_latent
        if given is not None:  # none waits for a pass
            is_latent, asked = torch.zeros_like(is_latent), torch.zeros_like(asked)
        k, is_last = order(is_latent, intervened.hides)  # [B, T]
        marks = order(asked, intervened.hides) if on_host else (k, is_last)
        columns, after = latent_columns(asked, host["attention_mask"], marks[1])
        starts = split_columns([*columns, *after], input_ids.shape[1], n_passes)
        if position_ids is None:
            position_ids = self.family.position_ids(input_ids, attention_mask, inputs)
        embedded = self.family.embed(self.model, input_ids, inputs)
        embeds = embedded.embeds  # [B, T, D]
        if self.fixed_thoughts is not None:
            embeds = self.fixed_thoughts(embeds, input_ids, seeds)
        if given is not None:
            embeds = put(embeds, known, given)
        cache = StaticKVCache(attention_mask.bool(), self.kernel, self.cache_buffers, host["attention_mask"].bool())
        mask = no_mask(embeds)

        segment: Segment | None = None
        hidden: list[Tensor] = []
        fed: list[Tensor] = []
        thoughts: list[Tensor] = []
        layers: Tensor | None = None
        with stacked_columns(), rotary_tables(self.decoder, embeds, position_ids) as choose_columns:
            for start, end in zip(starts, [*starts[1:], input_ids.shape[1]], strict=True):
                segment_embeds = embeds[:, start:end]
                if start in columns:
                    here = is_latent[:, start, None]  # [B, 1]
                    n_left = k.amax(-1) + 1 - k[:, start]
                    source = constant_before_last(hidden[-1][:, -1], n_left, self.gradient_passes)
                    thought = self.thought_source(source, len(thoughts))  # [B, D]
                    thought = intervened.replace(thought, k[:, start])
                    thoughts.append(thought.masked_fill(~here, 0))
                    first = torch.where(here, thought, segment_embeds[:, 0])
                    segment_embeds = torch.cat([first[:, None], segment_embeds[:, 1:]], dim=1)
                if start in after:  # rows whose thoughts are over hide them
                    cache.hide(is_latent & is_last[:, :start].any(-1, keepdim=True))
                segment = Segment(cache, start, previous=segment)
                choose_columns(start, end)
                out = self.decoder(
                    inputs_embeds=segment_embeds,
                    attention_mask=mask,
                    position_ids=position_ids[..., start:end],
                    use_cache=False,
                    segment=segment,
                    output_hidden_states=tapped is not None,
                    **embedded.further(slice(start, end)),
                )
                hidden.append(out.last_hidden_state)
                fed.append(segment_embeds)
                if tapped is not None:
                    layers = tap(layers, out.hidden_states[1:], tapped - start)
        stacked = torch.stack(thoughts, dim=1) if thoughts else embeds[:, :0]
        if given is not None:
            stacked = embeds.masked_fill(~known[..., None], 0)[:, places(known_on_host.any(0), embeds.device)[0]]
        visible = attention_mask.masked_fill(is_latent, 0) if intervened.hides else attention_mask
        return Passes(
            torch.cat(hidden, dim=1),
            torch.cat(fed, dim=1),
            stacked,
            cache,
            visible,
            position_ids,
            embedded.further,
            layers,
        )

    def _is_latent(self, input_ids: Tensor, attention_mask: Tensor, **others: Tensor) -> Tensor:
        if self.latent_token_id is None:
            return torch.zeros_like(input_ids, dtype=torch.bool)
        return (input_ids == self.latent_token_id) & attention_mask.bool()

    def language_loss(
        self, hidden: Tensor, labels: Tensor, divisor: Tensor | float | None, on_host: Tensor | None = None
    ) -> Tensor:
        """The summed next-token cross-entropy of last hidden states (B, T, D) at the labels (B, T), over a divisor: by
        default the number of labelled positions.

        Args:
            on_host: the same labels on the CPU; where the loss is, is then not asked of the device.
        """
        head: Any = self.model.get_output_embeddings()
        labelled = (labels if on_host is None else on_host)[:, 1:] != IGNORE_INDEX
        if divisor is None:
            divisor = labelled.sum().clamp(min=1)
        labelled[:, 0] |= ~labelled.any()  # without labels still call the head, as other ranks do: its loss is 0
        where = places(labelled, hidden.device)
        summed: Tensor = self.cross_entropy(hidden[where], head, labels[:, 1:][where])
        return summed / divisor
