"""cached_attention, segment by segment, against one softmax attention over the whole sequence, written out plainly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multicoco_kernels import LayerCache, cached_attention, first_handle

B, H, H_KV, L, D = 2, 4, 2, 11, 8


def whole_attention(q, k, v, key_mask):
    """Causal attention with padded keys left out; repeats K and V for grouped heads; no-key queries give 0."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    scores = scores.masked_fill(~(causal & key_mask[:, None, None, :]), -torch.inf)
    return torch.nan_to_num(scores.softmax(-1)) @ v


def segmented(q, k, v, key_mask, starts):
    cache, handle, outs = LayerCache(k, key_mask), first_handle(q.device), []
    for start, end in zip(starts, [*starts[1:], q.shape[2]], strict=True):
        part = slice(start, end)
        out, handle = cached_attention(
            q[:, :, part], k[:, :, part], v[:, :, part], handle, cache, start, q.shape[-1] ** -0.5
        )
        outs.append(out)
    return torch.cat(outs, 2)


def tensors(seed=0, heads=H, kv_heads=H_KV, length=L, dim=D, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    make = lambda h: torch.randn(B, h, length, dim, generator=rng, dtype=dtype).requires_grad_()  # noqa: E731
    return make(heads), make(kv_heads), make(kv_heads)


def left_padded(*padding, length=L):
    return torch.arange(length) >= torch.tensor(padding)[:, None]


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.sets(st.integers(1, L - 1)),
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 2)]),
    dim=st.sampled_from([1, 8, 20]),
    padding=st.tuples(st.integers(0, L), st.integers(0, L)),  # L: a row that is all padding
    seed=st.integers(0, 1000),
)
def test_forward_and_gradients_equal_whole_attention(cuts, heads, dim, padding, seed):
    key_mask = left_padded(*padding)
    q, k, v = tensors(seed, *heads, dim=dim)
    weight = torch.randn(B, heads[0], L, dim, dtype=torch.float64)
    expected = whole_attention(q, k, v, key_mask)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    out = segmented(q, k, v, key_mask, sorted({0, *cuts}))
    grads = torch.autograd.grad((out * weight).sum(), (q, k, v))
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)  # fp64, other order of summation


def test_a_segment_whose_output_is_unused_still_gets_the_gradients_of_its_keys():
    q, k, v = tensors()
    key_mask = left_padded(0, 0)
    expected = torch.autograd.grad(whole_attention(q, k, v, key_mask)[:, :, 6:].sum(), (k, v))
    grads = torch.autograd.grad(segmented(q, k, v, key_mask, [0, 3, 6])[:, :, 6:].sum(), (k, v))
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        (torch.bfloat16, 2e-2),
        (torch.float16, 2e-3),
    ],  # a few units of each type's rounding
)
def test_lower_precision_stays_within_its_rounding(dtype, tolerance):
    key_mask = left_padded(0, 3)
    exact = tensors()
    expected = whole_attention(*exact, key_mask)
    expected.sum().backward()
    rounded = [x.detach().to(dtype).requires_grad_() for x in exact]
    out = segmented(*rounded, key_mask, [0, 5, 6, 7])
    out.sum().backward()
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    for actual, wanted in zip(rounded, exact, strict=True):
        torch.testing.assert_close(actual.grad.double(), wanted.grad, rtol=tolerance, atol=4 * tolerance)


def test_non_contiguous_inputs():
    key_mask = left_padded(1, 0)
    q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in tensors())
    assert not q.is_contiguous()
    torch.testing.assert_close(segmented(q, k, v, key_mask, [0, 4]), whole_attention(q, k, v, key_mask))


def test_nothing_of_keys_and_values_is_saved_for_backward():
    q, k, v = tensors()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        cache = LayerCache(k, left_padded(0, 0))
        cached_attention(q[:, :, :4], k[:, :, :4], v[:, :, :4], first_handle(q.device), cache, 0, 1.0)
    assert sorted(saved) == sorted([(B, H, 4, D), (B, H, 4, D), (B, H_KV, 8, 1)])  # q, out, log-sum-exp


def test_second_backward_is_refused():
    q, k, v = tensors()
    out = segmented(q, k, v, left_padded(0, 0), [0, 4])
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"start": L - 1}, r"segment \[10, 14\) does not fit a cache of 11"),
        (lambda a: a | {"start": -1}, "does not fit"),
        (lambda a: a | {"k": a["k"][:, :1]}, r"\(2, 1, 4, 8\)"),
        (lambda a: a | {"v": a["v"][..., :4]}, r"\(2, 2, 4, 4\)"),
        (lambda a: a | {"q": a["q"][:, :3]}, r"q \(2, 3, 4, 8\)"),
        (lambda a: a | {"q": a["q"].float()}, "dtype"),
    ],
)
def test_bad_arguments_are_refused_with_their_shapes(change, message):
    q, k, v = (x[:, :, :4] for x in tensors())
    cache = LayerCache(k, left_padded(0, 0))
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "handle": first_handle(q.device),
        "cache": cache,
        "start": 0,
        "scale": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        cached_attention(**change(arguments))
