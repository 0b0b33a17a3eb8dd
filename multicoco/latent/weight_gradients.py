"""The weight gradients of all latent columns together: one product for each weight, whatever the number of passes.

A pass over one column of B rows gives a weight W (out, in) the gradient Y^T X, X (B, in) its input and Y (B, out) its
output's gradient. With so few rows, K such products and their sum are bound by moving K gradients of W's size. X and Y
are small: they are kept, and dW = [Y_1; ...; Y_K]^T [X_1; ...; X_K] is made when the last of them is there.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from multicoco.latent.products import autocast_dtype, linear

Rows = list[tuple[Tensor, Tensor]]  # of one layer's calls: input [B, in], and output's gradient [B, out]


class _Sum(torch.autograd.Function):
    """weight (out, in) -> a scalar for the columns' calls to take, so that its backward runs once all theirs have."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        ctx.set_materialize_grads(False)  # nothing flows through the scalar
        return weight.new_empty(())  # nobody reads it

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        if not ctx.rows:
            return None, None
        inputs, grads = (torch.cat(kept) for kept in zip(*ctx.rows, strict=True))  # [K B, in], [K B, out]
        ctx.rows.clear()
        return linear(grads.t(), inputs.t()), None


class _Linear(torch.autograd.Function):
    """x (..., in) -> (..., out). Keeps the rows that its weight's gradient is made of, or makes it if rows is None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows | None, scalar: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.rows = rows
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = linear(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad = grad.reshape(-1, grad.shape[-1])
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            x = x.reshape(-1, x.shape[-1])
            if ctx.rows is None:
                grad_weight = linear(grad.t(), x.t())
            else:
                ctx.rows.append((x, grad))
        return grad_x, grad_weight, grad_bias, None, None


class Shared(NamedTuple):
    """What a layer's calls on single columns have in common.

    Attributes:
        rows: that the weight's gradient is made of.
        scalar: of `_Sum`; None where none is made.
    """

    rows: Rows
    scalar: Tensor | None


# of each layer in the forward of a step; None for a layer that has run its first pass only
_step: ContextVar[dict[nn.Module, Shared | None] | None] = ContextVar("step", default=None)


class StackedLinear(nn.Linear):
    """A linear layer whose calls on single columns share one product for the weight's gradient.

    All calls take the same way through autograd, whatever their columns: a recompute must save what the call itself has
    saved, and gradients must be complete in the same order on every rank. So the first pass, whose backward is the
    last, makes its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if autocast_dtype(x.device) is not None:
            return super().forward(x)
        if not torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        step = _step.get() if self.weight.requires_grad else None
        shared: Shared | None = None
        if step is not None and self not in step:
            step[self] = None
        elif step is not None and x.dim() == 3 and x.shape[1] == 1:
            shared = shared_by_columns(self)
        out: Tensor = _Linear.apply(x, self.weight, self.bias, *(shared or (None, None)))
        return out


def shared_by_columns(layer: StackedLinear) -> Shared:
    """Of a layer, for its calls on single columns in the step that is under way."""
    step = _step.get()
    if step is None:
        raise RuntimeError("columns share something inside of stacked_columns() alone")
    shared = step.get(layer)
    if shared is None:
        rows: Rows = []
        step[layer] = shared = Shared(rows, _Sum.apply(layer.weight, rows))
    return shared


def stack_weight_gradients(decoder: nn.Module) -> None:
    """Makes every linear layer of a decoder a `StackedLinear`; layers of other classes, quantized ones, stay."""
    for module in decoder.modules():
        if type(module) is nn.Linear:
            module.__class__ = StackedLinear


@contextmanager
def stacked_columns() -> Iterator[None]:
    """Around all passes of a step: the calls of stacked layers on single columns inside belong together."""
    with _shared({}):
        yield


@contextmanager
def kept_rows(kept: Mapping[StackedLinear, Rows]) -> Iterator[None]:
    """Around a pass over a single column: its calls leave their rows in these lists, and no product is made of them."""
    with _shared({layer: Shared(rows, None) for layer, rows in kept.items()}):
        yield


@contextmanager
def _shared(step: dict[nn.Module, Shared | None]) -> Iterator[None]:
    before = _step.set(step)
    try:
        yield
    finally:
        _step.reset(before)
