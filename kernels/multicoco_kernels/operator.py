"""Append-and-attend as one differentiable operator: the cache's bookkeeping around any implementation.

Backward adds a segment's dK and dV to the cache's buffers for [0, end). Later segments have run their backward by
then (the chain of handles orders them), so the slice [start, end) is complete and is this segment's dk, dv.
Saved for backward: q, out and lse, never K or V. Only a segment that writes columns again keeps what stood there, and
its backward, once it has taken its gradients, puts that back for the segments before.
"""

import functools
import importlib
import os
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multicoco_kernels import cpu, flash, reference
from multicoco_kernels.cache import LayerCache, Overwritten

KERNELS = ("auto", "reference", "cpu", "triton", "flash")


def first_handle(device: torch.device) -> Tensor:
    """The handle for a layer's first segment: a scalar that starts the chain through all of its segments."""
    return _mark(torch.zeros((), device=device, requires_grad=True), Note(None, 0, 0))


class Note(NamedTuple):
    """What a handle says of the segments so far.

    Attributes:
        cache: that they are in; None before the first.
        end: of the columns that they fill.
        number: how many they are.
    """

    cache: LayerCache | None
    end: int
    number: int


def _mark(handle: Tensor, note: Note) -> Tensor:
    handle.note = note  # type: ignore[attr-defined]  # a tensor takes any attribute
    return handle


def pass_on(handle: Tensor, before: Tensor, cache: LayerCache, end: int) -> Tensor:
    """Makes a scalar the handle for the segment at `end`, after one that was run by other means than
    `cached_attention`.

    Args:
        before: the handle that this one was given.

    Raises:
        ValueError: that handle is not of the column before, or not of this cache.
    """
    note = _note(before)
    if note.cache is not cache or note.end != end - 1:
        raise ValueError(f"stale handle: for column {note.end}, this one is {end - 1}")
    return _mark(handle, Note(cache, end, note.number + 1))


def _note(handle: Tensor) -> Note:
    note: Note = handle.note  # type: ignore[attr-defined]
    return note


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    handle: Tensor,
    cache: LayerCache,
    start: int,
    scale: float,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Writes a segment's keys and values into the cache and attends from it to everything up to its end.

    Causal, with padded keys and those before a query's window (`cache.mask`) left out; scores capped, if the cache has
    a `cap`; softmax in at least fp32. A query that sees no key gets 0; what a query that is padding itself gets is
    finite and up to the kernel. Backward may run once, in the reverse order of the segments, which the handles enforce.

    A segment may begin before the end of the one before, and writes the columns from there on again: later segments see
    these alone, and gradients of what stood there before are right all the same.

    Args:
        q: (B, H, S, D), H a multiple of H_kv.
        k, v: (B, H_kv, S, D), this segment's.
        handle: scalar, `first_handle` or what the call for the segment before, on this cache, returned.
        cache: the layer's buffers, of length L >= start + S, filled up to start.
        start: the segment's first column, which is not behind those that are filled.
        scale: factor on q k^T, usually D ** -0.5.
        kernel: which implementation, one of KERNELS; `auto` is `cpu` on CPUs, and on GPUs `triton` or, without it,
            `flash`.

    Returns:
        out: (B, H, S, D), and the handle for the next segment.

    Raises:
        ValueError: shapes, dtypes, devices or a handle that do not fit each other or the cache.
        RuntimeError: on a second backward, a cache whose backward is over, or a segment that is run again when a later
            one has written over it.
    """
    if cache.is_released:
        raise RuntimeError("the backward of this cache's first segment is over: run the forward on a new cache")
    length, capacity = q.shape[2], cache.keys.shape[2]
    if start < 0 or start + length > capacity:
        raise ValueError(f"segment [{start}, {start + length}) does not fit a cache of {capacity} columns")
    expected = (cache.keys.shape[0], cache.keys.shape[1], length, cache.keys.shape[3])
    if k.shape != expected or v.shape != expected:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} must both be {expected} for this cache")
    if (q.shape[0], q.shape[3]) != (expected[0], expected[3]) or q.shape[1] % expected[1]:
        raise ValueError(
            f"q {tuple(q.shape)} does not fit keys {expected}: same batch and head size, H a multiple of H_kv"
        )
    kinds = {(x.dtype, x.device) for x in (q, k, v, cache.keys)}
    if len(kinds) > 1:
        raise ValueError(
            f"q {tuple(q.shape)}, k, v {expected} and the cache {tuple(cache.keys.shape)} must share one dtype and "
            f"device, got {sorted(map(str, kinds))}"
        )
    belongs_to, filled, number = _note(handle)
    if not start <= filled <= start + length or belongs_to not in (None, cache):
        whose = "this" if belongs_to in (None, cache) else "another"
        raise ValueError(
            f"stale handle: of {whose} cache, for a segment that starts at column {filled} or writes up to it again; "
            f"this one is [{start}, {start + length}), q {tuple(q.shape)}"
        )
    overwritten = cache.overwrite(number + 1, start, filled, keeps=torch.is_grad_enabled())
    is_windowed, is_capped = cache.mask.window is not None, cache.cap is not None
    chosen = implementation(kernel, q.device, is_windowed, is_capped)
    out, handle = _CachedAttention.apply(q, k, v, handle, cache, start, scale, chosen, overwritten)
    return out, _mark(handle, Note(cache, start + length, number + 1))


def implementation(kernel: str, device: torch.device, is_windowed: bool = False, is_capped: bool = False) -> ModuleType:
    """The module that computes a kernel on a device. Windows are left to PyTorch, as other kernels do not know of them:
    on CPUs to its flash kernel, on GPUs to the reference. Of caps, the reference alone knows.

    Raises:
        ValueError: there is no such kernel, or this machine cannot run it there.
    """
    if kernel not in KERNELS:
        raise ValueError(f"there is no kernel {kernel!r}: take one of {', '.join(KERNELS)}")
    on_cpu = device.type == "cpu"
    if kernel == "auto":
        kernel = "cpu" if on_cpu else "triton" if _triton() else "flash"
    if kernel == "cpu" and not on_cpu:
        raise ValueError(f"kernel 'cpu' cannot run on {device}: use 'auto'")
    if is_capped:
        return reference
    if is_windowed:
        return flash if on_cpu and kernel != "reference" else reference
    if kernel != "triton":
        return {"reference": reference, "cpu": cpu, "flash": flash}[kernel]
    triton = _triton()
    if triton is None:
        raise ValueError("kernel 'triton' needs the triton package: install it, or use 'auto'")
    if on_cpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("kernel 'triton' needs a GPU, or TRITON_INTERPRET=1 to be tried out on a CPU: use 'auto'")
    return triton


@functools.cache
def _triton() -> ModuleType | None:
    """The Triton kernels, where Triton is installed; imported on first use."""
    try:
        return importlib.import_module("multicoco_kernels.triton")
    except ImportError:
        return None


class _CachedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        handle: Tensor,
        cache: LayerCache,
        start: int,
        scale: float,
        implementation: ModuleType,
        overwritten: Overwritten | None,
    ) -> tuple[Tensor, Tensor]:
        cache.write(start, k, v)
        out, lse = implementation.forward(q, cache, start, scale)
        ctx.save_for_backward(q, out, lse)
        ctx.cache, ctx.start, ctx.scale, ctx.implementation = cache, start, scale, implementation
        ctx.overwritten = overwritten  # no saved tensor: a recompute would take what stands there then
        return out, handle.new_empty(())  # nobody reads it

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_handle: Tensor) -> tuple[Tensor | None, ...]:
        q, out, lse = ctx.saved_tensors
        cache, start, end = ctx.cache, ctx.start, ctx.start + q.shape[2]
        if cache is None:
            raise RuntimeError(
                f"cached_attention of q {tuple(q.shape)} at column {start} ran backward a second time: the gradients "
                "in its cache are already used; run the forward again instead of retain_graph=True"
            )
        ctx.cache = None
        grad_q = ctx.implementation.backward(grad_out, q, out, lse, cache, start, ctx.scale)
        # copies: the buffers are another step's soon
        grad_k, grad_v = (x[:, :, start:end].to(q.dtype, copy=True) for x in cache.gradients()[:2])
        if ctx.overwritten is not None:
            cache.put_back(ctx.overwritten)
            ctx.overwritten = None
        if start == 0:
            cache.release()
        return grad_q, grad_k, grad_v, grad_handle, None, None, None, None, None
