"""The packing around flash-attn's kernels, which need a GPU: on the CPU a stand-in takes their place."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cached_attention import B, L, left_padded, segmented, tensors, whole_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multicoco_kernels import KeyMask, flash

pytestmark = pytest.mark.gpu


def packed_attention(q, k, v, query_offsets, key_offsets, scale):
    """(N, H, D), (M, H_kv, D) twice -> (N, H, D): row by row, the queries being the last columns of their row."""
    outs = []
    for row in range(len(query_offsets) - 1):
        rows, columns = (slice(*offsets[row : row + 2].tolist()) for offsets in (query_offsets, key_offsets))
        groups = q.shape[1] // k.shape[1]
        keys, values = (x[columns].transpose(0, 1).repeat_interleave(groups, 0) for x in (k, v))
        scores = scale * q[rows].transpose(0, 1) @ keys.mT
        n_queries, n_keys = scores.shape[1:]
        seen = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries)
        outs.append((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outs)


def _flash_attn_varlen_forward(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal
):
    assert causal and dropout_p == 0 and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q >= cu_seqlens_q.diff().max() and max_seqlen_k >= cu_seqlens_k.diff().max()
    assert cu_seqlens_q[-1] == len(q) and cu_seqlens_k[-1] == len(k) == len(v)
    out = packed_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale)
    return out, q.new_zeros(q.shape[1], len(q)), None, None


def _flash_attn_varlen_backward(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic,
):  # fmt: skip
    assert softmax_lse.shape == (q.shape[1], len(q)) and out.shape == dout.shape == q.shape
    assert (window_size_left, window_size_right, softcap, alibi_slopes) == (-1, -1, 0.0, None)
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        again = packed_attention(*inputs, cu_seqlens_q, cu_seqlens_k, softmax_scale)
        for target, gradient in zip((dq, dk, dv), torch.autograd.grad(again, inputs, dout), strict=True):
            target.copy_(gradient)


@pytest.fixture(scope="module")
def stand_in():
    package = ModuleType("flash_attn")
    package.flash_attn_interface = SimpleNamespace(
        _flash_attn_varlen_forward=_flash_attn_varlen_forward, _flash_attn_varlen_backward=_flash_attn_varlen_backward
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flash_attn", package)
        patch.setattr(flash, "forward", flash._packed_forward)
        patch.setattr(flash, "backward", flash._packed_backward)
        flash._packed_kernels.cache_clear()
        yield
    flash._packed_kernels.cache_clear()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves are tested then")
def test_queries_that_are_no_padding_get_whole_attention(stand_in, data):
    cuts = data.draw(st.sets(st.integers(1, L - 1), max_size=6))
    heads, kv_heads = data.draw(st.sampled_from([(4, 4), (4, 2), (6, 1)]))
    if data.draw(st.booleans()):
        key_mask = left_padded(*data.draw(st.tuples(st.integers(0, L - 1), st.integers(0, L))))
    else:
        key_mask = torch.rand(B, L, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))) < 0.6
        key_mask[0, 0] = True
    q, k, v = tensors(data.draw(st.integers(0, 1000)), heads, kv_heads)
    weight = torch.randn_like(q) * key_mask[:, None, :, None]  # nobody reads what padding gets
    expected = (whole_attention(q, k, v, key_mask) * weight).sum()
    actual = (segmented(q, k, v, key_mask, sorted({0, *cuts}), "flash") * weight).sum()
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    grads, wanted = (torch.autograd.grad(x, (q, k, v)) for x in (actual, expected))
    for gradient, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-12)


class Reads(TorchDispatchMode):
    """Counts the operations that read a tensor."""

    def __init__(self, tensor):
        super().__init__()
        self.storage, self.count = tensor.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        self.count += any(x.untyped_storage().data_ptr() == self.storage for x in tensors)
        return function(*args, **(kwargs or {}))


def test_only_the_first_packing_waits_for_the_device():
    mask = KeyMask(left_padded(2, 5))
    with Reads(mask.valid) as reads:
        mask.packed(0, 4)
        assert reads.count == 1  # copied to the host
        places, offsets = mask.packed(4, 7)
    assert reads.count == 1
    assert places.tolist() == [0, 1, 2, 4, 5] and offsets.tolist() == [0, 3, 5]


def test_pytorchs_build_takes_these_arguments():
    """On the meta device: the kernel itself runs on GPUs only."""

    def rows(n, heads):
        return torch.empty(n, heads, 64, dtype=torch.bfloat16, device="meta")

    q, k, v = rows(10, 4), rows(14, 2), rows(14, 2)
    offsets = torch.empty(3, dtype=torch.int32, device="meta")
    packed = flash._Rows(offsets, offsets, 6, 9)
    out, lse = flash._pytorch_forward(q, k, v, packed, 0.125)
    assert out.shape == q.shape and lse.shape == (4, 10)
    grads = flash._pytorch_backward(out, q, k, v, out, lse, packed, 0.125)
    assert [x.shape for x in grads] == [q.shape, k.shape, v.shape]
