"""Coconut's latent passes: the language model runs segment by segment, each latent embedding being the model's own
last hidden state of the column before it (Hao et al. 2024, arXiv:2412.06769, section 3)."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import ModelOutput

from multicoco.curriculum import IGNORE_INDEX, Fork
from multicoco.data.features import FEATURES, SEEN
from multicoco.latent.cache import ATTENTION_NAME, StaticKVCache
from multicoco.latent.column_graphs import ColumnGraphs
from multicoco.latent.controls import GaussianThoughts
from multicoco.latent.forks import key_columns, positions
from multicoco.latent.generate import generate_after
from multicoco.latent.head import logits_of
from multicoco.latent.interventions import UNTOUCHED, Intervened
from multicoco.latent.kinds import check_supported, rescaling_of
from multicoco.latent.loss import LabelledCrossEntropy
from multicoco.latent.objective import NOTHING, Asked, Objective, Supervised
from multicoco.latent.passes import Passes, Thinking, run
from multicoco.latent.places import find
from multicoco.latent.recording import CudaRecorder
from multicoco.latent.schedule import SEQUENTIAL, Branched, OnePass, PassSchedule
from multicoco.latent.thoughts import ThoughtSource, hidden_state, put
from multicoco.latent.weight_gradients import stack_weight_gradients
from multicoco.models.families import Embedded, Embedding, Keeping, family_of
from multicoco_kernels import KERNELS, BufferPool, coordinates


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


class LatentReasoner(nn.Module):
    """A causal or vision-language model that reasons in latent space, for plain PyTorch and DeepSpeed alike.

    A position is latent where `input_ids == latent_token_id`. Rows may differ in the number of latent tokens and in
    where they stand; a row's result does not depend on the rest of its batch. Columns between two latent columns
    are one pass, so rows aligned at their first (or last) latent token need K + 1 passes for at most K of them, or what
    the schedule says.

    Args:
        model: of a family in `multicoco.models.families`.
        latent_token_id: the id of `<|latent|>`; None where no position is latent.
        kernel: implementation of the cached attention, one of `multicoco_kernels.KERNELS`.
        thoughts: what a latent position is fed; Coconut's last hidden state by default.
        fixed_thoughts: what positions hold that wait for no pass; with a latent_token_id of None.
        gradient_passes: through how many of its last thoughts a row's gradient goes, to the passes that made them;
            None: all.
        pass_schedule: which pass runs which columns; as many passes as thoughts, and one, by default.
        objective: the loss of a batch with `supervision`, instead of the language model's.
        cuda_graphs: on GPUs, in training, passes over single columns are recorded and replayed, where the kernel reads
            on the device where they stand (`multicoco_kernels.reads_on_device`).

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
        pass_schedule: PassSchedule = SEQUENTIAL,
        objective: Objective | None = None,
        cuda_graphs: bool = True,
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
        self.pass_schedule = pass_schedule
        self.objective = objective
        self.cache_buffers: defaultdict[int, BufferPool] = defaultdict(BufferPool)  # by layer
        self.embedding, self.keeping = Embedding(), Keeping()
        self.cross_entropy = LabelledCrossEntropy(rescaling_of(model.config))
        self.decoder.set_attn_implementation(ATTENTION_NAME)
        if self.decoder.config._attn_implementation != ATTENTION_NAME:
            raise ValueError(f"{model.config.model_type} does not let its attention be replaced")
        stack_weight_gradients(self.decoder)
        self.column_graphs = ColumnGraphs(CudaRecorder()) if cuda_graphs else None

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
        supervision: dict[str, Any] | None = None,
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
            on_host: input_ids, attention_mask, labels and the tensors of the supervision once more, on the CPU: with
                them, nothing is read from the device.
            inputs: what the family's models take beside tokens (its `input_names`), of all rows in order; for InternVL
                pixel_values, (N, 3, H, W) image tiles. Or what is kept of the images (`Family.kept`).

        Raises:
            TypeError: the family has no such input.
            ValueError: more latent columns than n_passes allows, or a latent token without a token before it.
        """
        objective = self.objective if supervision else None
        fork: Fork | None = (supervision or {}).get("fork")
        if fork is not None and objective is None:
            raise ValueError("the rows have branches, and there is no objective that says what they are for")
        passes = self.run_passes(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            n_passes=n_passes,
            seeds=seeds,
            intervened=UNTOUCHED,
            asked=objective.asked(self, supervision) if objective and supervision else NOTHING,
            fork=fork,
            on_host=on_host,
            **inputs,
        )
        loss = None
        if labels is not None and objective and supervision:
            loss = objective(self, Supervised(passes, labels, loss_divisor, supervision, on_host or {}))
        elif labels is not None:
            loss = self.language_loss(passes.hidden, labels, loss_divisor, on_host.get("labels") if on_host else None)
        logits = logits_of(self.model)(passes.hidden) if return_logits else None
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
        names = inputs_and_options.keys() & {*self.family.input_names, FEATURES, SEEN}
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
        asked: Asked = NOTHING,
        fork: Fork | None = None,
        on_host: Mapping[str, Tensor] | None = None,
        **inputs: Tensor,
    ) -> Passes:
        """The passes alone, from which `latent.generate` goes on.

        Args: as for `forward`; `intervened` is what is done to the thoughts, `asked` what an objective asks
            for, `fork` where the rows divide.

        Raises: as `forward`; ValueError also for thoughts to be hidden where a gradient is wanted, where the columns
            end with one, or where they are made in parallel and end in different columns.
        """
        if intervened.hides and torch.is_grad_enabled():
            raise ValueError("thoughts are hidden at evaluation only: call it under torch.no_grad()")
        if unknown := inputs.keys() - {*self.family.input_names, FEATURES, SEEN}:
            raise TypeError(f"{self.model.config.model_type} takes no {', '.join(sorted(unknown))}")
        host = on_host or {"input_ids": input_ids, "attention_mask": attention_mask}
        tokens, mask = host["input_ids"], host["attention_mask"]
        places = find(tokens, mask, self.latent_token_id, intervened.hides, input_ids.device)
        schedule = self.pass_schedule if asked.given is None else OnePass()
        if fork is not None:
            schedule = Branched(schedule, fork)
        order = schedule.passes(places.columns, list(places.hidden_from), input_ids.shape[1], n_passes)
        if position_ids is None:
            position_ids = positions(self.family, input_ids, attention_mask, inputs, fork)
        embedded = Embedded(*self.embedding(self.family, self.model, input_ids, inputs, tokens if on_host else None))
        if self.fixed_thoughts is not None:
            embedded = replace(embedded, embeds=self.fixed_thoughts(embedded.embeds, input_ids, seeds))
        if asked.given is not None:
            embedded = replace(embedded, embeds=put(embedded.embeds, places.is_latent, asked.given))
        keys = key_columns(attention_mask.bool(), fork)
        known = key_columns(on_host["attention_mask"].bool(), fork) if on_host else None
        graphs = self.column_graphs
        if graphs is not None and (asked.tapped is not None or not graphs.serve(self.kernel, input_ids.device)):
            graphs = None
        if graphs is not None:
            keys, known = graphs.with_room(keys), None if known is None else graphs.with_room(known)
        cache = StaticKVCache(keys, self.kernel, self.cache_buffers, known)
        thinking = Thinking(places.k, self.thought_source, self.gradient_passes, intervened.replace)
        hidden, embeds, made_of, layers = run(
            self.decoder, embedded, position_ids, order, thinking, cache, places.hidden_from, asked.tapped, graphs
        )
        return Passes(
            hidden=hidden,
            embeds=embeds,
            made_of=made_of,
            places=places,
            cache=cache,
            visible=attention_mask.masked_fill(places.is_latent, 0) if intervened.hides else attention_mask,
            position_ids=position_ids,
            further=embedded.further,
            layers=layers,
        )

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
        where = coordinates(labelled, hidden.device)
        summed: Tensor = self.cross_entropy(hidden[where], head, labels[:, 1:][where])
        return summed / divisor
