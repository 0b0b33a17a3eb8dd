"""Attention of a short segment over a static cache in Triton, for NVIDIA and AMD GPUs; long segments are `flash`'s.

Per batch row and key/value head, with R = G * S query rows (G query heads share what is read) and keys [0, end):

    s = scale * q K^T + bias;  lse = log sum exp s;  out = exp(s - lse) V
    ds = exp(s - lse) * (dout V^T - sum(dout * out));  dq = scale ds K;  dK += scale ds^T q;  dV += exp(s - lse)^T dout

Memory moved: K and V once in forward; in backward K and V once, dK and dV once in and once out, in fp32. One column
has too few heads to fill a GPU, so programs split the length of the cache (flash-decoding): forward leaves a partial
output and log-sum-exp per split, which a second kernel combines; backward leaves a partial dq per split. Every split
owns its rows of dK and dV, so there are no atomics and the same inputs give the same bits. Where a segment stands is
read on the device: a column's launches are the same wherever it stands, and can be recorded (`column.py`).

Tested on the CPU with TRITON_INTERPRET=1 set before the first import.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicoco_kernels import flash
from multicoco_kernels.cache import LayerCache, Reach

# numbers of a tile, at which backward needs 49 KiB (H100: 88) of shared memory (GPUs have 99 to 227) and hardly spills
# registers, and how many rows it has: tl.dot takes no fewer
QUERY_TILE, KEY_TILE = 64 * 64, 64 * 32
LEAST, MOST = 16, 64
SPLIT_KEYS = 128


@triton.jit
def _load_tile(SOURCE, first, rows, columns, n_rows, head_dim, dtype):
    """Rows [first + rows] of a (*, head_dim) tensor, 0 beyond its n_rows and columns."""
    inside = (rows[:, None] < n_rows) & (columns[None, :] < head_dim)
    return tl.load(SOURCE + (first + rows[:, None]) * head_dim + columns[None, :], mask=inside, other=0.0).to(dtype)


@triton.jit
def _store_tile(TARGET, tile, first, rows, columns, n_rows, head_dim):
    inside = (rows[:, None] < n_rows) & (columns[None, :] < head_dim)
    tl.store(TARGET + (first + rows[:, None]) * head_dim + columns[None, :], tile, mask=inside)


@triton.jit
def _scores(q, k, BIAS, mask_row, keys, positions, end, SCALE: tl.constexpr, PRECISION: tl.constexpr):
    """[R, D], [N, D] -> [R, N], minus infinity where a key must not be seen."""
    bias = tl.load(BIAS + mask_row + keys, mask=keys < end, other=float("-inf"))
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * SCALE + bias[None, :]
    return tl.where(keys[None, :] <= positions[:, None], scores, float("-inf"))


@triton.jit
def _forward_split(
    Q, K, V, BIAS, PARTIAL, PARTIAL_LSE, START, length, capacity, n_splits, n_rows, head_dim, kv_heads,
    SCALE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head, split = tl.program_id(0).to(tl.int64), tl.program_id(1)  # head: of batch * kv_heads
    rows, columns, start = tl.arange(0, ROWS), tl.arange(0, BLOCK_D), tl.load(START).to(tl.int32)
    end = start + length
    dtype = PARTIAL.dtype.element_ty  # of the sums
    q = _load_tile(Q, head * n_rows, rows, columns, n_rows, head_dim, dtype)
    positions = start + rows % length
    maximum = tl.full([ROWS], float("-inf"), dtype)
    total = tl.zeros([ROWS], dtype)
    out = tl.zeros([ROWS, BLOCK_D], dtype)
    for block in range(BLOCKS):
        keys = (split * BLOCKS + block) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = _load_tile(K, head * capacity, keys, columns, end, head_dim, dtype)
        v = _load_tile(V, head * capacity, keys, columns, end, head_dim, dtype)
        scores = _scores(q, k, BIAS, head // kv_heads * capacity, keys, positions, end, SCALE, PRECISION)
        higher = tl.maximum(maximum, tl.max(scores, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # so far no key is seen
        probs = tl.exp(scores - finite[:, None])
        shrink = tl.exp(maximum - finite)
        total = total * shrink + tl.sum(probs, 1)
        out = out * shrink[:, None] + tl.dot(probs, v, input_precision=PRECISION)
        maximum = higher
    seen = total > 0
    out = tl.where(seen[:, None], out / tl.where(seen, total, 1.0)[:, None], 0.0)
    lse = tl.where(seen, maximum + tl.log(tl.where(seen, total, 1.0)), float("-inf"))
    task = head * n_splits + split
    _store_tile(PARTIAL, out, task * n_rows, rows, columns, n_rows, head_dim)
    tl.store(PARTIAL_LSE + task * n_rows + rows, lse, mask=rows < n_rows)


@triton.jit
def _combine(PARTIAL, PARTIAL_LSE, OUT, LSE, n_splits, n_rows, head_dim, SPLITS: tl.constexpr, BLOCK_D: tl.constexpr):
    """One query row: its splits' outputs, weighted by their shares of the probability."""
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    splits, columns = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    tasks = (head * n_splits + splits) * n_rows + row
    lses = tl.load(PARTIAL_LSE + tasks, mask=splits < n_splits, other=float("-inf"))
    maximum = tl.max(lses, 0)
    maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    weights = tl.exp(lses - maximum)
    total = tl.sum(weights, 0)
    inside = (splits[:, None] < n_splits) & (columns[None, :] < head_dim)
    partial = tl.load(PARTIAL + tasks[:, None] * head_dim + columns[None, :], mask=inside, other=0.0)
    divisor = tl.where(total > 0, total, 1.0)
    out = tl.sum(partial * weights[:, None], 0) / divisor
    tl.store(OUT + (head * n_rows + row) * head_dim + columns, out, mask=columns < head_dim)
    # a query that sees no key: output 0, and a log-sum-exp at which every probability is 0 in backward
    tl.store(LSE + head * n_rows + row, tl.where(total > 0, maximum + tl.log(divisor), float("inf")))


@triton.jit
def _backward_split(
    GRAD_OUT, Q, OUT, LSE, K, V, BIAS, PARTIAL, GRAD_K, GRAD_V,
    START, length, capacity, n_splits, n_rows, head_dim, kv_heads,
    SCALE: tl.constexpr, FRESH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, columns, start = tl.arange(0, ROWS), tl.arange(0, BLOCK_D), tl.load(START).to(tl.int32)
    end = start + length
    dtype = PARTIAL.dtype.element_ty
    q = _load_tile(Q, head * n_rows, rows, columns, n_rows, head_dim, dtype)
    grad_out = _load_tile(GRAD_OUT, head * n_rows, rows, columns, n_rows, head_dim, dtype)
    out = _load_tile(OUT, head * n_rows, rows, columns, n_rows, head_dim, dtype)
    lse = tl.load(LSE + head * n_rows + rows, mask=rows < n_rows, other=float("inf"))
    delta = tl.sum(grad_out * out, 1)
    positions = start + rows % length
    grad_q = tl.zeros([ROWS, BLOCK_D], dtype)
    for block in range(BLOCKS):
        keys = (split * BLOCKS + block) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = _load_tile(K, head * capacity, keys, columns, end, head_dim, dtype)
        v = _load_tile(V, head * capacity, keys, columns, end, head_dim, dtype)
        scores = _scores(q, k, BIAS, head // kv_heads * capacity, keys, positions, end, SCALE, PRECISION)
        probs = tl.exp(scores - lse[:, None])
        grad_probs = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
        grad_scores = probs * (grad_probs - delta[:, None]) * SCALE
        grad_q += tl.dot(grad_scores, k, input_precision=PRECISION)
        grad_k = tl.dot(tl.trans(grad_scores), q, input_precision=PRECISION)
        grad_v = tl.dot(tl.trans(probs), grad_out, input_precision=PRECISION)
        if not FRESH:
            grad_k += _load_tile(GRAD_K, head * capacity, keys, columns, end, head_dim, dtype)
            grad_v += _load_tile(GRAD_V, head * capacity, keys, columns, end, head_dim, dtype)
        _store_tile(GRAD_K, grad_k, head * capacity, keys, columns, end, head_dim)
        _store_tile(GRAD_V, grad_v, head * capacity, keys, columns, end, head_dim)
    _store_tile(PARTIAL, grad_q, (head * n_splits + split) * n_rows, rows, columns, n_rows, head_dim)


class _Launch:
    """Sizes that both directions share: the segment's, the grid's and the tiles'."""

    def __init__(self, q: Tensor, reach: Reach, scale: float):
        batch, kv_heads, capacity, head_dim = reach.keys.shape
        length = q.shape[2]
        self.heads, self.rows = batch * kv_heads, q.shape[1] // kv_heads * length
        self.splits = triton.cdiv(reach.end, SPLIT_KEYS)
        self.grid = (self.heads, self.splits)
        self.block_d = _padded(head_dim)
        block_keys = _tile_rows(KEY_TILE, head_dim)
        self.sizes = (length, capacity, self.splits, self.rows, head_dim, kv_heads)
        self.tiles = {
            "SCALE": scale,
            "ROWS": _padded(self.rows),
            "BLOCK_D": self.block_d,
            "BLOCK_N": block_keys,
            "BLOCKS": SPLIT_KEYS // block_keys,
            # tf32 holds bf16 and fp16 exactly, and probabilities with more bits than theirs
            "PRECISION": "tf32" if q.dtype.itemsize == 2 and not torch.version.hip else "ieee",
        }


def _padded(size: int) -> int:
    return max(LEAST, int(triton.next_power_of_2(size)))


def _tile_rows(numbers: int, head_dim: int) -> int:
    return min(MOST, max(LEAST, numbers // _padded(head_dim)))


def _is_short(q: Tensor, keys: Tensor) -> bool:
    """Whether the query rows of a key/value head are no more than those of one tile."""
    return q.shape[1] // keys.shape[1] * q.shape[2] <= _tile_rows(QUERY_TILE, q.shape[3])


def forward(q: Tensor, cache: LayerCache, start: int, scale: float) -> tuple[Tensor, Tensor]:
    """q (B, H, S, D) -> out (B, H, S, D), and lse (B, H, S)."""
    if not _is_short(q, cache.keys):
        return flash.forward(q, cache, start, scale)
    return attend(q, cache.reach(start, start + q.shape[2]), scale)


def backward(
    grad_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, cache: LayerCache, start: int, scale: float
) -> Tensor:
    """Adds dK and dV to the cache's gradient buffers; returns dq (B, H, S, D)."""
    if not _is_short(q, cache.keys):
        return flash.backward(grad_out, q, out, lse, cache, start, scale)
    grad_keys, grad_values, fresh = cache.gradients()
    reach = cache.reach(start, start + q.shape[2])
    return differentiate(grad_out, q, out, lse, reach, scale, (grad_keys, grad_values), fresh)


def attend(q: Tensor, reach: Reach, scale: float) -> tuple[Tensor, Tensor]:
    """As `forward`, of a short segment."""
    n, q = _Launch(q, reach, scale), q.contiguous()
    dtype = reach.bias.dtype
    partial = q.new_empty(n.heads, n.splits, n.rows, q.shape[3], dtype=dtype)
    partial_lse = q.new_empty(n.heads, n.splits, n.rows, dtype=dtype)
    _forward_split[n.grid](
        q, reach.keys, reach.values, reach.bias, partial, partial_lse, reach.start, *n.sizes, **n.tiles
    )
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=dtype)
    _combine[n.heads, n.rows](
        partial, partial_lse, out, lse, n.splits, n.rows, q.shape[3], triton.next_power_of_2(n.splits), n.block_d
    )
    return out, lse


def differentiate(
    grad_out: Tensor,
    q: Tensor,
    out: Tensor,
    lse: Tensor,
    reach: Reach,
    scale: float,
    gradients: tuple[Tensor, Tensor],
    fresh: bool = False,
) -> Tensor:
    """As `backward`, of a short segment, which adds to these buffers or, if they are fresh, stores there."""
    n, q = _Launch(q, reach, scale), q.contiguous()
    partial = q.new_empty(n.heads, n.splits, n.rows, q.shape[3], dtype=lse.dtype)
    given = (grad_out.contiguous(), q, out, lse, reach.keys, reach.values, reach.bias)
    _backward_split[n.grid](*given, partial, *gradients, reach.start, *n.sizes, FRESH=fresh, **n.tiles)
    return partial.sum(1).to(q.dtype).view_as(q)
