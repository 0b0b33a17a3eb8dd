"""The static key/value buffers of one attention layer, and the gradients that gather beside them."""

import functools
import weakref
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class BufferPool:
    """Flat buffers that caches take and, when they are gone, give back: later steps of a shape allocate nothing."""

    def __init__(self) -> None:
        self.free: list[Tensor] = []

    def take(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised buffer of at least `size` elements: a free one, or a new one if none is large enough."""
        same_kind = [buffer for buffer in self.free if (buffer.dtype, buffer.device) == (dtype, device)]
        large_enough = [buffer for buffer in same_kind if buffer.numel() >= size]
        if same_kind:  # one that is too small is replaced, so that growing lengths leave nothing behind
            taken = min(large_enough or same_kind, key=Tensor.numel)
            self.free = [buffer for buffer in self.free if buffer is not taken]
        if large_enough:
            return taken
        with torch.inference_mode(False):  # the next to take it may be a training step
            return torch.empty(size, dtype=dtype, device=device)

    def give(self, buffers: list[Tensor]) -> None:
        """Takes back what `take` returned; nobody may use it any more."""
        self.free.extend(buffers)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on a device, for which the host does not wait: from pinned memory, where that makes a difference."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def coordinates(mask: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Where a mask is true: of each of its axes, (N,) on the device. Waits for it only if the mask is there itself."""
    return tuple(send(along, device) for along in mask.nonzero(as_tuple=True))


class KeyMask:
    """Which columns of a batch may be attended to, in the forms that the kernels read; each is made once.

    Args:
        valid: (B, L) bool, False at padding.
        window: how many columns a query sees up to its own, which only `visible` and `segment_bias` know of; None: all.
        on_host: `valid` on the CPU, where it is there.
    """

    def __init__(self, valid: Tensor, window: int | None = None, on_host: Tensor | None = None):
        self.valid = valid
        self.window = window
        self._given_on_host = on_host
        self._biases: dict[torch.dtype, Tensor] = {}
        self._visible: dict[tuple[int, int], Tensor] = {}
        self._segment_biases: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._packed: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def bias(self, dtype: torch.dtype) -> Tensor:
        """(B, L), 0 at keys and minus infinity at padding."""
        if dtype not in self._biases:
            zeros = torch.zeros(self.valid.shape, dtype=dtype, device=self.valid.device)  # contiguous, as kernels need
            self._biases[dtype] = zeros.masked_fill_(~self.valid, -torch.inf)
        return self._biases[dtype]

    @functools.cached_property
    def columns(self) -> Tensor:
        """(L,) int64, their numbers."""
        return torch.arange(self.valid.shape[1], device=self.valid.device)

    def visible(self, start: int, end: int) -> Tensor:
        """(B, 1, end - start, end) bool: the keys at or before each column of a segment, and within its window."""
        if (start, end) not in self._visible:
            columns = self.columns[:end]
            seen = columns <= columns[start:, None]
            if self.window is not None:
                seen &= columns > columns[start:, None] - self.window
            self._visible[start, end] = self.valid[:, None, None, :end] & seen
        return self._visible[start, end]

    def segment_bias(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """(B, 1, end - start, end): `visible` as 0 and minus infinity."""
        if (start, end, dtype) not in self._segment_biases:
            visible = self.visible(start, end)
            bias = torch.zeros_like(visible, dtype=dtype)
            self._segment_biases[start, end, dtype] = bias.masked_fill_(~visible, -torch.inf)
        return self._segment_biases[start, end, dtype]

    def packed(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """The keys among columns [start, end): (N,) places in the flattened (B, end - start), and (B + 1,) int32
        offsets of the rows in them. How many there are is counted on the host: only the first one waits for the device,
        and none where the mask is on the host too."""
        if (start, end) not in self._packed:
            valid = self._on_host[:, start:end]
            offsets = F.pad(valid.sum(1).cumsum(0), (1, 0)).int()
            forms = valid.flatten().nonzero()[:, 0], offsets
            self._packed[start, end] = send(forms[0], self.valid.device), send(forms[1], self.valid.device)
        return self._packed[start, end]

    @functools.cached_property
    def _on_host(self) -> Tensor:
        return self.valid.to("cpu", copy=True) if self._given_on_host is None else self._given_on_host


class Reach(NamedTuple):
    """What a segment attends to, for kernels that read on the device where it stands.

    Attributes:
        keys, values: (B, H_kv, L, D).
        bias: (B, L), as of `KeyMask.bias`, at least fp32.
        start: (1,) int64, the segment's first column.
        end: behind its last column, or further: a kernel need not look beyond.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    start: Tensor
    end: int


class Overwritten(NamedTuple):
    """Keys and values from column `start` on that a segment has written over."""

    start: int
    keys: Tensor
    values: Tensor


class LayerCache:
    """Keys and values of one layer for a whole sequence, written in place segment by segment.

    Once the first segment's backward is done, or the cache is gone, its buffers go back to the pool.

    Attributes:
        mask: which columns are keys. Shared by all layers of a window.
        cap: scores are cap * tanh(score / cap) before the mask (Gemma 2's softcapping); None: as they are.
        keys, values: (B, H_kv, L, D), in the model's dtype.
        grad_keys, grad_values: (B, H_kv, L, D), at least fp32; None until they are asked for.
    """

    def __init__(self, like: Tensor, mask: KeyMask, pool: BufferPool, cap: float | None = None):
        """Args: like: (B, H_kv, *, D), any segment's keys: gives heads, head size, dtype and device."""
        batch, heads, _, head_dim = like.shape
        self.mask = mask
        self.cap = cap
        self._pool = pool
        self._taken: list[Tensor] = []
        self._give_back = weakref.finalize(self, pool.give, self._taken)
        self._shape = (batch, heads, mask.valid.shape[1], head_dim)
        self.keys, self.values = self._take(like.dtype, like.device), self._take(like.dtype, like.device)
        self.grad_keys: Tensor | None = None
        self.grad_values: Tensor | None = None
        self._is_fresh = True
        self._overwriting: list[int] = []  # the numbers of the segments that have written over others

    def _take(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        size = torch.Size(self._shape).numel()
        self._taken.append(self._pool.take(size, dtype, device))
        return self._taken[-1][:size].view(self._shape)

    @property
    def is_released(self) -> bool:
        return not self._give_back.alive

    def release(self) -> None:
        """Gives the buffers back; the cache is of no further use."""
        del self.keys, self.values
        self.grad_keys = self.grad_values = None
        self._give_back()

    def overwrite(self, number: int, start: int, filled: int, keeps: bool) -> Overwritten | None:
        """Before segment `number`, counted from 1, writes from `start` on, where columns up to `filled` are there.

        Returns: what it writes over, if that is to be kept; nothing on a recompute, when it stands there itself.

        Raises:
            RuntimeError: a later one has written over columns, and its backward has not put them back yet.
        """
        last = self._overwriting[-1] if self._overwriting else 0
        if number < last:
            raise RuntimeError(f"segment {number} of a cache is run again, but segment {last} has written over columns")
        if start == filled or number == last or not keeps:
            return None
        self._overwriting.append(number)
        return Overwritten(start, *(x[:, :, start:filled].clone() for x in (self.keys, self.values)))

    def put_back(self, overwritten: Overwritten) -> None:
        """After the backward of the segment that has written over these columns: the gradients there are of its own."""
        start, end = overwritten.start, overwritten.start + overwritten.keys.shape[2]
        self.write(start, overwritten.keys, overwritten.values)
        for gradients in self.gradients()[:2]:
            gradients[:, :, start:end] = 0
        self._overwriting.pop()

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Puts a segment's (B, H_kv, S, D) at columns [start, start + S); the same again on a recompute."""
        self.keys[:, :, start : start + keys.shape[2]] = keys
        self.values[:, :, start : start + values.shape[2]] = values

    def reach(self, start: int, end: int) -> Reach:
        """That of columns [start, end)."""
        return Reach(self.keys, self.values, self.bias, self.mask.columns[start : start + 1], end)

    @property
    def bias(self) -> Tensor:
        """(B, L), as of `KeyMask.bias`, at least fp32."""
        return self.mask.bias(self._wide)

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.keys.dtype, torch.float32)

    def gradient_buffers(self) -> tuple[Tensor, Tensor]:
        """Of keys and of values, whatever they hold."""
        if self.grad_keys is None or self.grad_values is None:
            device = self.keys.device
            self.grad_keys, self.grad_values = self._take(self._wide, device), self._take(self._wide, device)
        return self.grad_keys, self.grad_values

    def gradients(self) -> tuple[Tensor, Tensor, bool]:
        """The gradient buffers, and whether they are fresh: then they hold anything, and the first segment to run its
        backward, which is the last one and so reaches furthest, stores instead of adding."""
        fresh, self._is_fresh = self._is_fresh, False
        return *self.gradient_buffers(), fresh

    def accumulate(self, grad_keys: Tensor, grad_values: Tensor) -> None:
        """Adds one segment's gradients with respect to columns [0, end), (B, H_kv, end, D) each."""
        *buffers, fresh = self.gradients()
        for buffer, gradient in zip(buffers, (grad_keys, grad_values), strict=True):
            reached = buffer[:, :, : gradient.shape[2]]
            reached.copy_(gradient) if fresh else reached.add_(gradient)
