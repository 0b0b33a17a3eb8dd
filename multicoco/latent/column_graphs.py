"""Passes over single columns as CUDA graphs.

Of a column there is so little to compute that a GPU is done before the host has started its kernels, one after another
through all layers and back. Recorded once, forward and backward, they are started together, and what is left to the
host is to copy in what the column is made of. A recording reads and writes where it was recorded, so it is replayed
where the same buffers, weights and sizes are there again; where they are not, it is made anew.
"""

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.functional import pad
from transformers import PreTrainedModel

from multicoco.latent.cache import RotaryTables, Segment, StaticKVCache, no_mask
from multicoco.latent.products import autocast_dtype
from multicoco.latent.recording import NotRecordable, Recorder
from multicoco.latent.weight_gradients import Rows, StackedLinear, kept_rows, shared_by_columns
from multicoco_kernels import Column, LayerCache, Reach, column_attention, pass_on, reads_on_device

GRAIN = 64  # columns by which the cache grows: one that grew with each longer batch would have all recorded anew
KEPT = 4  # sizes of batches, or places of their buffers, that are kept
FEW, SELDOM = 16, 4  # so many may be made however often, and more for every fourth step at most


class RecordedColumn:
    """A pass over one column of B rows, which is its layers' `Attends`.

    Attributes:
        parameters: that get a gradient of each column.

    Args:
        cache: with the buffers of all layers.
        bias: (B, L), of the keys; what it holds is read with each replay, as the column's place is.
        embeds: (B, 1, D), position_ids, tables: like those that the pass is given.
    """

    def __init__(
        self,
        decoder: PreTrainedModel,
        cache: StaticKVCache,
        bias: Tensor,
        embeds: Tensor,
        position_ids: Tensor,
        tables: RotaryTables,
    ):
        self.decoder = decoder
        self._kernel = cache.kernel
        self.embeds, self.grad_hidden = torch.empty_like(embeds).detach(), torch.zeros_like(embeds)
        self.position_ids = torch.empty_like(position_ids)
        self.tables = {kind: tuple(map(torch.empty_like, of)) for kind, of in tables.chosen().items()}
        self.start = torch.empty(1, dtype=torch.int64, device=embeds.device)
        self.columns = {
            index: Column(Reach(layer.keys, layer.values, bias, self.start, bias.shape[1]), layer.gradient_buffers())
            for index, layer in cache.layers.items()
        }
        stacked = [x for x in decoder.modules() if isinstance(x, StackedLinear) and x.weight.requires_grad]
        self._rows: dict[StackedLinear, Rows] = {layer: [] for layer in stacked}
        self._trained = {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}
        self.parameters: list[nn.Parameter] = []

    def attend(
        self, layer_index: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, cap: float | None
    ) -> Tensor:
        """q (B, H, 1, D), k and v (B, H_kv, 1, D) -> (B, H, 1, D).

        Raises:
            NotRecordable: for a window or a cap.
        """
        if window is not None or cap is not None:
            raise NotRecordable("attention in a window, or with a cap on scores")
        return column_attention(q, k, v, self.columns[layer_index], scale, self._kernel)

    def place(self, embeds: Tensor, start: Tensor, position_ids: Tensor, tables: RotaryTables) -> None:
        """Puts in what a pass is given, and where its column stands."""
        with torch.no_grad():
            self.embeds.copy_(embeds)
        self.start.copy_(start)
        self.position_ids.copy_(position_ids)
        for kind, of in tables.chosen().items():
            for kept, table in zip(self.tables[kind], of, strict=True):
                kept.copy_(table)

    def record(self, recorder: Recorder, tables: RotaryTables) -> None:
        """Once it has been placed: what it writes while it is recorded, its replay and all backwards write again.

        Raises: NotRecordable.
        """
        device, tables.fixed = self.embeds.device, self.tables
        try:
            with torch.cuda.device_of(self.embeds):
                # a run that is gone on with records again, and is to draw the numbers that it would have drawn
                with torch.random.fork_rng([device] if device.type == "cuda" else []):
                    recorder.warm_up(lambda: (self._run_forward(), self._run_backward()))
                del self._hidden  # autograd's nodes belong to the stream on which they were made
                self._forward, self._backward = recorder.record(self._run_forward, self._run_backward)
        finally:
            tables.fixed = None
        found = zip(self._trained.values(), self._has_gradient[1:], strict=True)
        self.parameters = [parameter for parameter, has_gradient in found if has_gradient]
        self._n_rows = {layer: len(rows) for layer, rows in self._rows.items() if rows}

    @property
    def layers(self) -> list[StackedLinear]:
        """That leave rows for their weights' gradients."""
        return list(self._n_rows)

    def forward(self) -> Tensor:
        """The last hidden states (B, 1, D)."""
        self._forward.replay()
        return self._forward.outputs[0].clone()

    def backward(self, grad_hidden: Tensor, rows: Sequence[Rows]) -> list[Tensor]:
        """Args: rows: of each of `layers`, where they are left.

        Returns: the gradients of the embeddings and of `parameters`.
        """
        self.grad_hidden.copy_(grad_hidden)
        self._backward.replay()
        outputs = iter(self._backward.outputs)
        # whoever is given one may keep it
        gradients = [next(outputs).clone() for _ in range(1 + len(self.parameters))]
        for kept, n in zip(rows, self._n_rows.values(), strict=True):
            kept.extend((next(outputs), next(outputs)) for _ in range(n))
        return gradients

    def _run_forward(self) -> list[Tensor]:
        # other leaves of the same storage: those of the step are in graphs of another stream
        weights = {name: x.detach().requires_grad_(x.requires_grad) for name, x in self.decoder.named_parameters()}
        embeds = self.embeds.detach().requires_grad_()
        self._leaves = [embeds, *(weights[name] for name in self._trained)]
        inputs = {"inputs_embeds": embeds, "attention_mask": no_mask(embeds), "position_ids": self.position_ids}
        with kept_rows(self._rows), _without_checkpointing(self.decoder):
            out = functional_call(self.decoder, weights, kwargs={**inputs, "use_cache": False, "segment": self})
        self._hidden: Tensor = out.last_hidden_state
        return [self._hidden.detach()]

    def _run_backward(self) -> list[Tensor]:
        for rows in self._rows.values():
            rows.clear()
        # what is saved must stay: nothing else says that a replay will read it. Weights whose rows are kept have no
        # gradient here, and a weight may be used in both ways
        gradients = torch.autograd.grad(
            self._hidden, self._leaves, self.grad_hidden, retain_graph=True, allow_unused=True
        )
        self._has_gradient = [gradient is not None for gradient in gradients]
        of_rows = (x for rows in self._rows.values() for pair in rows for x in pair)
        return [*(gradient for gradient in gradients if gradient is not None), *of_rows]


@contextmanager
def _without_checkpointing(decoder: PreTrainedModel) -> Iterator[None]:
    """What a single column saves is little, and recording must not run anything twice."""
    changed = [module for module in decoder.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in changed:
        module.gradient_checkpointing = False  # type: ignore[assignment]  # an attribute, no submodule
    try:
        yield
    finally:
        for module in changed:
            module.gradient_checkpointing = True  # type: ignore[assignment]


class _Replay(torch.autograd.Function):
    """A column among the other segments. Beside its embeddings it takes what orders the backwards: the handles that the
    segment before has left, to be returned anew, and the scalars of its layers (`weight_gradients`)."""

    @staticmethod
    def forward(
        ctx: Any, column: RecordedColumn, rows: list[Rows], caches: list[LayerCache], embeds: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.column, ctx.rows, ctx.caches = column, rows, caches
        ctx.n_scalars = len(others) - len(caches) - len(column.parameters)
        hidden = column.forward()
        return hidden, *(hidden.new_empty(()) for _ in caches)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden: Tensor, *grad_handles: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.column is None:
            raise RuntimeError("a recorded column ran backward a second time: run the forward again")
        for cache in ctx.caches:
            *buffers, is_fresh = cache.gradients()
            for buffer in buffers if is_fresh else ():  # nothing of what comes behind is in the loss
                buffer.zero_()
        grad_embeds, *gradients = ctx.column.backward(grad_hidden, ctx.rows)
        ctx.column = ctx.caches = None
        return None, None, None, grad_embeds, *grad_handles, *([None] * ctx.n_scalars), *gradients


@dataclass(frozen=True)
class _Batch:
    """What is recorded for batches of one size, where their buffers lie.

    Attributes:
        weights: of the decoder; none of them can be taken for another while they are kept.
        bias: (B, L).
        columns: by the number of their pass.
    """

    weights: list[nn.Parameter]
    bias: Tensor
    columns: dict[int, RecordedColumn] = field(default_factory=dict)


class ColumnGraphs:
    """Recordings of passes over single columns, in training. A copy of it has none.

    Args:
        recorder: of the device that the decoder will be on.
    """

    def __init__(self, recorder: Recorder):
        self.recorder = recorder
        self.refused = ""  # why nothing is recorded any more
        self._length = self._n_steps = self._n_made = 0
        self._batches: dict[tuple[object, ...], _Batch] = {}  # the one that was used last comes last
        self._latest: tuple[weakref.ref[StaticKVCache], _Batch | None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ColumnGraphs, (self.recorder,)

    def serve(self, kernel: str, device: torch.device) -> bool:
        """Whether columns are to be run by `run` there, which takes a cache of keys made by `with_room`."""
        return (
            device.type == self.recorder.device_type
            and not self.refused
            and torch.is_grad_enabled()
            and autocast_dtype(device) is None
            and reads_on_device(kernel, device)
        )

    def with_room(self, keys: Tensor) -> Tensor:
        """(B, T) bool -> (B, L): L is the same for all batches, until a longer one comes, with which all recordings
        go."""
        if keys.shape[1] > self._length:
            self._length = -(-keys.shape[1] // GRAIN) * GRAIN
            self._batches.clear()
        return pad(keys, (0, self._length - keys.shape[1]))

    def run(
        self,
        decoder: PreTrainedModel,
        number: int,
        segment: Segment,
        embeds: Tensor,
        position_ids: Tensor,
        tables: RotaryTables,
    ) -> Tensor | None:
        """The last hidden states (B, 1, D) of a column between other passes; None if it has to be run as these are.

        Args:
            number: of its pass in the step.
            segment: to be given the handles for the next one.
            embeds, position_ids, tables: as the decoder is given them.
        """
        cache, previous = segment.cache, segment.previous
        batch = None if self.refused else self._batch(decoder, cache, position_ids)
        if previous is None or batch is None:
            return None
        column = batch.columns.get(number)
        if column is None:
            column = RecordedColumn(decoder, cache, batch.bias, embeds, position_ids, tables)
        column.place(embeds, cache.column(segment.start), position_ids, tables)
        if number not in batch.columns and not self._record(column, tables):
            return None
        batch.columns[number] = column
        shared = [shared_by_columns(layer) for layer in column.layers]
        ordering = [*(previous.handles[index] for index in cache.layers), *(one.scalar for one in shared)]
        caches = [*cache.layers.values()]
        hidden: Tensor
        hidden, *handles = _Replay.apply(
            column, [one.rows for one in shared], caches, embeds, *ordering, *column.parameters
        )
        for index, handle in zip(cache.layers, handles, strict=True):
            before, layer = previous.handles[index], cache.layers[index]
            segment.handles[index] = pass_on(handle, before, layer, segment.start + 1)
        return hidden

    def _record(self, column: RecordedColumn, tables: RotaryTables) -> bool:
        try:
            column.record(self.recorder, tables)
        except NotRecordable as error:
            self._refuse(str(error))
            return False
        return True

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        self._batches.clear()
        warnings.warn(f"latent columns run kernel by kernel, which is slower: {reason}", stacklevel=2)

    def _batch(self, decoder: PreTrainedModel, cache: StaticKVCache, position_ids: Tensor) -> _Batch | None:
        """What is recorded for a cache, with its mask put in; None if nothing is to be."""
        if self._latest is None or self._latest[0]() is not cache:
            batch = None if _is_hooked(decoder) else self._find(decoder, cache, position_ids)
            self._latest = weakref.ref(cache), batch
        return self._latest[1]

    def _find(self, decoder: PreTrainedModel, cache: StaticKVCache, position_ids: Tensor) -> _Batch | None:
        layers, weights = [*cache.layers.values()], [*decoder.parameters()]
        buffers = [x for layer in layers for x in (layer.keys, layer.values, *layer.gradient_buffers())]
        bias = layers[0].bias
        key = (
            *(bias.shape, position_ids.shape),
            *(x.data_ptr() for x in (*buffers, *weights)),
            *((id(x), x.requires_grad) for x in weights),
            *map(_settings, decoder.modules()),
        )
        self._n_steps += 1
        batch = self._batches.pop(key, None)
        if batch is None:
            self._n_made += 1
            if self._n_made > FEW and SELDOM * self._n_made > self._n_steps:
                self._refuse("what they depend on changes all the time")
                return None
            batch = _Batch(weights, torch.empty_like(bias))
        self._batches[key] = batch
        while len(self._batches) > KEPT:
            del self._batches[next(iter(self._batches))]
        batch.bias.copy_(bias)
        return batch


def _is_hooked(decoder: PreTrainedModel) -> bool:
    """Whether others wait for its modules to be called, as ZeRO-3 does: a replay calls none. What transformers once has
    put there only listens while it is asked for what layers give."""
    return any(
        hook.__module__ != "transformers.utils.output_capturing"
        for module in decoder.modules()
        for hooks in (
            *(module._forward_hooks, module._forward_pre_hooks),
            *(module._backward_hooks, module._backward_pre_hooks),
        )
        for hook in hooks.values()
    )


def _settings(module: nn.Module) -> tuple[object, ...]:
    """What a pass may read of a module beside its tensors: flags, numbers and words, alone or, as peft has them, in
    dicts and lists."""
    return tuple(
        value if isinstance(value, int | float | str) else str(value)
        for name, value in vars(module).items()
        if isinstance(value, int | float | str) or (isinstance(value, dict | list) and not name.startswith("_"))
    )
