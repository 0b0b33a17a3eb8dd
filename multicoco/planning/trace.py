"""What a model's layers keep and need, counted by running them on the meta device: shapes without numbers.

Every operation of forward and backward makes its outputs there as on a GPU, so the bytes alive can be counted op by op
(`LiveBytes`) for any architecture, precision, freezing and checkpointing. Layers of a kind are alike: models of one and
of two layers tell what one layer adds. Attention is replaced by a stand-in that saves what the real kernels save.
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from multicoco.config.schema import Lora
from multicoco.latent.cache import no_mask
from multicoco.latent.kinds import rescaling_of, score_cap
from multicoco.latent.loss import LabelledCrossEntropy
from multicoco.latent.objective import Objective
from multicoco.models.checkpointing import checkpoint_activations
from multicoco.models.families import family_of
from multicoco.models.freezing import freeze
from multicoco.models.layers import keep_first_layers
from multicoco.models.lora import add_lora
from multicoco_kernels import BufferPool, KeyMask, LayerCache, reference

_ATTENTION_NAME = "multicoco_planned"
N_LATENT_TOKENS = 3  # <|latent|>, and those before and after the thoughts
ObjectiveOf = Callable[[PreTrainedModel], Objective | None]


@dataclass(frozen=True)
class Trace:
    """Bytes of one forward and backward.

    Attributes:
        saved: what backward finds, left by forward.
        forward: needed at the worst moment of forward, beyond what is saved at its end.
        backward: needed at the worst moment of backward, beyond what was saved at its start.
        forward_kernels, backward_kernels: operations that write memory; each is a kernel launch on a GPU.
    """

    saved: int
    forward: int
    backward: int
    forward_kernels: int
    backward_kernels: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.kernels = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for storage in self._unseen((args, kwargs)):  # made before: weights and inputs
            self._add(storage, 0)
        outputs = function(*args, **(kwargs or {}))
        new = self._unseen(outputs)
        self.kernels += bool(new) or function._schema.is_mutable
        for storage in new:
            self._add(storage, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return outputs

    def _unseen(self, tensors: Any) -> list[torch.UntypedStorage]:
        storages = [x.untyped_storage() for x in tree_leaves(tensors) if isinstance(x, Tensor)]
        return [storage for storage in storages if storage._cdata not in self._seen]

    def _add(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        if storage._cdata not in self._seen:  # twice among the inputs
            self._seen.add(storage._cdata)
            self.live += nbytes
            weakref.finalize(storage, self._forget, storage._cdata, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.live -= nbytes


class _PlannedAttention(torch.autograd.Function):
    """Saves q, out and log-sum-exp, and k and v only where no cache holds them; no score matrix, as flash kernels."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_cached: bool) -> Tensor:
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.kv_shape, ctx.is_cached = k.shape, is_cached
        ctx.save_for_backward(q, out, lse, *(() if is_cached else (k, v)))
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q = ctx.saved_tensors[0]
        return torch.empty_like(q), q.new_empty(ctx.kv_shape), q.new_empty(ctx.kv_shape), None


class _ReferenceAttention(torch.autograd.Function):
    """The segment at the end of a cache by the reference kernel, which makes all of its scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cache: LayerCache) -> Tensor:
        ctx.cache, ctx.start = cache, cache.keys.shape[2] - q.shape[2]
        out, lse = reference.forward(q, cache, ctx.start, 1.0)
        ctx.save_for_backward(q, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, out, lse = ctx.saved_tensors
        grad_q = reference.backward(grad_out, q, out, lse, ctx.cache, ctx.start, 1.0)
        grad_k, grad_v = (x[:, :, ctx.start :].to(q.dtype, copy=True) for x in ctx.cache.gradients()[:2])
        return grad_q, grad_k, grad_v, None


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    softcap: float | None = None,
    segment: LayerCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    out: Tensor
    if segment is None or softcap is None:
        out = _PlannedAttention.apply(query, key, value, segment is not None)
    else:
        out = _ReferenceAttention.apply(query, key, value, segment)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION_NAME, _attention_forward)
AttentionMaskInterface.register(_ATTENTION_NAME, sdpa_mask)


def no_objective(model: PreTrainedModel) -> None:
    """The language model's loss."""


def meta_model(
    config: PreTrainedConfig, dtype: torch.dtype, freezing: dict[str, bool], lora: Lora | None
) -> PreTrainedModel:
    """The model of a config without weights, with what of it is trained.

    Args:
        freezing, lora: as in the run config.

    Raises:
        UserError: a model of no family, or without the parts that `freezing` names.
    """
    auto_model = family_of(config).auto_model
    with torch.device("meta"):
        model: PreTrainedModel = auto_model.from_config(config, dtype=dtype)
    model.tie_weights()
    if lora is not None and lora.rank:
        add_lora(model, **lora.model_dump(), new_tokens=range(N_LATENT_TOKENS))
    freeze(model, **freezing)
    model.train()
    return model


class Tracer:
    """Traces of a model's decoder layers, vision layers, projector and loss, at any size; and of the layers of what its
    objective runs besides.

    Args:
        freezing, lora: as in the run config.
        objective: as of `Method.objective`.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        dtype: torch.dtype,
        freezing: dict[str, bool],
        lora: Lora | None = None,
        objective: ObjectiveOf = no_objective,
    ):
        self.config = config
        self.family = family_of(config)
        self.dtype = dtype
        self.freezing, self.lora, self.objective = freezing, lora, objective
        self._decoders = lru_cache(maxsize=None)(self._decoder)
        self.besides = lru_cache(maxsize=None)(self._besides)
        self.vision = lru_cache(maxsize=None)(self._vision)
        self.projector = lru_cache(maxsize=None)(self._projector)
        self.loss = lru_cache(maxsize=None)(self._loss)
        self._models = lru_cache(maxsize=None)(self._model)

    def _model(self, layers: int | None, checkpointing: bool) -> PreTrainedModel:
        """With so many layers; None: with its own."""
        config = self.config if layers is None else self.family.with_layers(layers)
        return _traced(meta_model(config, self.dtype, self.freezing, self.lora), checkpointing)

    def decoder(self, rows: int, columns: int, checkpointing: bool, start: int = 0) -> Trace:
        """One decoder layer on a segment of (rows, columns) behind `start` others.

        Those count only where scores are capped: no other kernel makes them all.
        """
        is_capped = score_cap(self.config) is not None
        return self._decoders(rows, columns, checkpointing, start if is_capped else 0)

    def _decoder(self, rows: int, columns: int, checkpointing: bool, start: int) -> Trace:
        decoders = [self._models(layers, checkpointing).get_decoder() for layers in (1, 2)]
        return self._layer(decoders, rows, columns, start)

    def _besides(self, rows: int, columns: int, checkpointing: bool) -> Trace:
        """One layer of what the objective runs besides the passes, on rows of so many columns."""
        decoders = []
        for fewer in (1, 0):
            model = meta_model(copy.deepcopy(self.config), self.dtype, self.freezing, self.lora)
            objective = self.objective(model)
            decoder = None if objective is None else objective.runs(model)
            assert decoder is not None  # it has been asked
            keep_first_layers(decoder, min(2, decoder.config.num_hidden_layers) - fewer)
            decoders.append(_traced(decoder, checkpointing))
        return self._layer(decoders, rows, columns, 0)

    def _layer(self, decoders: Sequence[PreTrainedModel], rows: int, columns: int, start: int) -> Trace:
        """One layer on a segment, from two decoders of which the second one has one more."""
        heads, head_dim = cache_shape(self.config.get_text_config())
        like = torch.empty(rows, heads, 1, head_dim, dtype=self.dtype, device="meta")
        valid = torch.empty(rows, start + columns, dtype=torch.bool, device="meta")
        cache = LayerCache(like, KeyMask(valid), BufferPool())
        cache.gradients()  # they are there before the step
        cache.mask.visible(start, start + columns)  # all layers share it

        def run(decoder: PreTrainedModel) -> Trace:
            width = self.config.get_text_config().hidden_size
            embeds = torch.empty(rows, columns, width, dtype=self.dtype, device="meta")
            embeds.requires_grad_(any(p.requires_grad for p in decoder.parameters()))
            positions = torch.empty(rows, columns, dtype=torch.long, device="meta")
            mask = no_mask(embeds)
            return _trace(
                lambda: (
                    decoder(
                        inputs_embeds=embeds,
                        attention_mask=mask,
                        position_ids=positions,
                        use_cache=False,
                        segment=cache,
                    ).last_hidden_state
                )
            )

        return _per_layer(*map(run, decoders))

    def _vision(self, tiles: int, checkpointing: bool) -> Trace:
        """One layer of the vision tower on so many tiles."""

        def run(layers: int) -> Trace:
            model = self._models(layers, checkpointing)
            inputs = self.family.blank_tiles(tiles, torch.empty((), dtype=self.dtype, device="meta"))
            return _trace(lambda: self.family.image_features(model, inputs))

        return _per_layer(run(1), run(2))

    def _projector(self, tiles: int) -> Trace:
        """The projector on what the vision tower has made of so many tiles."""
        model = self._models(None, False)
        inputs = self.family.blank_tiles(tiles, torch.empty((), dtype=self.dtype, device="meta"))
        with torch.no_grad():
            kept = self.family.kept(model, inputs, projected=False)
        return _trace(lambda: torch.cat([x.flatten() for x in self.family.project(model, kept)]))

    def _loss(self, positions: int) -> Trace:
        """Head and cross-entropy on so many labelled positions."""
        model = self._models(1, False)
        head = model.get_output_embeddings()
        width = self.config.get_text_config().hidden_size
        hidden = torch.empty(positions, width, dtype=self.dtype, device="meta", requires_grad=True)
        targets = torch.empty(positions, dtype=torch.long, device="meta")
        return _trace(lambda: LabelledCrossEntropy(rescaling_of(self.config))(hidden, head, targets))


def cache_shape(text: PreTrainedConfig) -> tuple[int, int]:
    """Of a language model: heads of keys and values, and the numbers of a head."""
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return heads, head_dim


def _traced(model: PreTrainedModel, checkpointing: bool) -> PreTrainedModel:
    model.set_attn_implementation(_ATTENTION_NAME)
    if checkpointing:
        checkpoint_activations(model)
    for parameter in model.parameters():
        if parameter.requires_grad:  # a gradient is counted where the engine keeps it
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    return model


def _drop_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _trace(forward: Callable[[], Tensor]) -> Trace:
    with LiveBytes() as bytes_:
        out = forward()
        saved, needed, kernels = bytes_.live, bytes_.peak - bytes_.live, bytes_.kernels
        bytes_.peak = bytes_.live
        if out.requires_grad:
            torch.autograd.backward(out, torch.empty_like(out))
        return Trace(saved, needed, bytes_.peak - saved, kernels, bytes_.kernels - kernels)


def _per_layer(one: Trace, two: Trace) -> Trace:
    """What one layer adds, from two models of which the second one has one more; the needs of a moment are those of its
    layers, with all that surrounds them."""
    return Trace(
        two.saved - one.saved,
        two.forward,
        two.backward,
        two.forward_kernels - one.forward_kernels,
        two.backward_kernels - one.backward_kernels,
    )
