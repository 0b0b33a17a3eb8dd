"""A column that reads on the device where it stands, against the definition of the cached attention."""

import pytest
import torch

from multicoco_kernels import (
    BufferPool,
    Column,
    KeyMask,
    LayerCache,
    column_attention,
    first_handle,
    pass_on,
    reads_on_device,
    reference,
)
from multicoco_kernels.operator import Note

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
B, H, H_KV, L, D = 2, 4, 2, 9, 16


def numbers(heads: int, columns: int, seed: int) -> torch.Tensor:
    made = torch.randn(B, heads, columns, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.to(DEVICE)


def filled(start: int) -> LayerCache:
    """Up to a column, behind which there is anything; a row is padded, the gradients of later columns are there."""
    valid = torch.ones(B, L, dtype=torch.bool, device=DEVICE)
    valid[1, :2] = False
    keys = numbers(H_KV, L, 0)
    cache = LayerCache(keys, KeyMask(valid), BufferPool())
    cache.write(0, keys, numbers(H_KV, L, 1))
    cache.keys[:, :, start:] = cache.values[:, :, start:] = torch.nan
    for buffer, seed in zip(cache.gradients()[:2], (2, 3), strict=True):
        buffer.copy_(numbers(H_KV, L, seed))
    return cache


@pytest.mark.parametrize("start", [0, 3, L - 1])
@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_it_is_the_cached_attention_of_a_column(kernel, start):
    q, k, v, grad = (numbers(heads, 1, seed) for heads, seed in ((H, 4), (H_KV, 5), (H_KV, 6), (H, 7)))
    expected = filled(start)
    expected.write(start, k, v)
    out, lse = reference.forward(q, expected, start, 0.3)
    grad_q = reference.backward(grad, q, out, lse, expected, start, 0.3)

    cache = filled(start)
    reach = cache.reach(0, L)._replace(start=torch.tensor([start], device=DEVICE))
    own = [x.clone().requires_grad_() for x in (q, k, v)]
    found = column_attention(*own, Column(reach, cache.gradient_buffers()), 0.3, kernel)
    gradients = torch.autograd.grad(found, own, grad)

    seen = cache.mask.valid[:, start]  # of a query that is padding, what comes out is up to the kernel
    torch.testing.assert_close(found[seen], out[seen])
    torch.testing.assert_close(gradients[0][seen], grad_q[seen])
    for mine, theirs in zip(cache.gradient_buffers(), expected.gradient_buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(gradients[1:], expected.gradient_buffers(), strict=True):
        torch.testing.assert_close(mine, theirs[:, :, start : start + 1])
    for mine, theirs in ((cache.keys, k), (cache.values, v)):
        assert torch.equal(mine[:, :, start], theirs[:, :, 0])


def test_only_kernels_that_read_on_the_device_do():
    kernels = ("reference", "triton", "flash") if DEVICE.type == "cuda" else ("reference", "triton", "cpu", "flash")
    assert [kernel for kernel in kernels if reads_on_device(kernel, DEVICE)] == ["reference", "triton"]


def test_a_handle_is_passed_on_by_the_next_column_of_its_cache_alone():
    cache = filled(4)
    before = first_handle(DEVICE)
    before.note = Note(cache, 4, 1)
    assert pass_on(torch.zeros(()), before, cache, 5).note == Note(cache, 5, 2)
    for other, end in ((filled(4), 5), (cache, 6)):
        with pytest.raises(ValueError, match="stale handle"):
            pass_on(torch.zeros(()), before, other, end)
