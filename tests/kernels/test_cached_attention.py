"""cached_attention, segment by segment, against one softmax attention over the whole sequence, written out plainly."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multicoco_kernels
from multicoco_kernels import (
    BufferPool,
    KeyMask,
    LayerCache,
    cached_attention,
    cpu,
    first_handle,
    flash,
    implementation,
    operator,
)

pytestmark = pytest.mark.gpu

B, H, H_KV, L, D = 2, 4, 2, 11, 8
KERNELS = ("reference", "cpu", "triton", "flash")


def new_cache(like, key_mask, pool=None, window=None, cap=None):
    return LayerCache(like, KeyMask(key_mask, window), pool or BufferPool(), cap)


def whole_attention(q, k, v, key_mask, window=None, cap=None):
    """Causal attention with padded keys left out; repeats K and V for grouped heads; no-key queries give 0."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    scores = cap * torch.tanh(scores / cap) if cap else scores
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    causal = causal.triu(1 - window) if window else causal
    scores = scores.masked_fill(~(causal & key_mask[:, None, None, :]), -torch.inf)
    return torch.nan_to_num(scores.softmax(-1)) @ v


def device_of(kernel):
    return "cuda" if torch.cuda.is_available() and kernel != "cpu" else "cpu"


def segmented(q, k, v, key_mask, starts, kernel="reference", pool=None, window=None, cap=None):
    """On a GPU where there is one; inputs and result are on the CPU."""
    q, k, v, key_mask = (x.to(device_of(kernel)) for x in (q, k, v, key_mask))
    cache, handle, outs = new_cache(k, key_mask, pool, window, cap), first_handle(q.device), []
    for start, end in zip(starts, [*starts[1:], q.shape[2]], strict=True):
        part = slice(start, end)
        out, handle = cached_attention(
            q[:, :, part], k[:, :, part], v[:, :, part], handle, cache, start, q.shape[-1] ** -0.5, kernel
        )
        outs.append(out)
    return torch.cat(outs, 2).cpu()


def tensors(seed=0, heads=H, kv_heads=H_KV, length=L, dim=D, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    make = lambda h: torch.randn(B, h, length, dim, generator=rng, dtype=dtype).requires_grad_()  # noqa: E731
    return make(heads), make(kv_heads), make(kv_heads)


def left_padded(*padding, length=L):
    return torch.arange(length) >= torch.tensor(padding)[:, None]


def check_against_whole_attention(kernel, data):
    length = data.draw(st.sampled_from([L, 139, 300]))  # 128 is the C++ and the Triton kernel's split
    cuts = data.draw(st.sets(st.integers(1, length - 1), max_size=12))
    heads = data.draw(st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 2), (14, 2)]))
    dim = data.draw(st.sampled_from([1, 8, 20, 32, 64, 80, 96, 128]))
    padding = data.draw(st.tuples(st.integers(0, length), st.integers(0, length)))  # length: a row of padding only
    key_mask = left_padded(*padding, length=length)
    q, k, v = tensors(data.draw(st.integers(0, 1000)), *heads, length=length, dim=dim)
    weight = torch.randn(B, heads[0], length, dim, dtype=torch.float64)
    expected = whole_attention(q, k, v, key_mask)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    out = segmented(q, k, v, key_mask, sorted({0, *cuts}), kernel)
    grads = torch.autograd.grad((out * weight).sum(), (q, k, v))
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-10)  # fp64, other order of summation


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kernel", ["reference", "cpu", "flash"])
def test_forward_and_gradients_equal_whole_attention(kernel, data):
    check_against_whole_attention(kernel, data)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("starts", "window"), [([0], 3), ([0, 4, 5, 6], 1), ([0, 4, 5, 6], 3), ([0, 1, 2, 9], L)])
def test_a_window_leaves_out_what_is_before_it_and_padding_on_both_sides(kernel, starts, window):
    key_mask = left_padded(0, 4)
    key_mask[0, 7:] = False  # more padding than a window is wide
    q, k, v = tensors()
    real = key_mask[:, None, :, None]
    expected = whole_attention(q, k, v, key_mask, window) * real
    out = segmented(q, k, v, key_mask, starts, kernel, window=window)
    assert out.isfinite().all()
    for actual, wanted in zip(
        (out * real, *torch.autograd.grad((out * real).square().sum(), (q, k, v))),
        (expected, *torch.autograd.grad(expected.square().sum(), (q, k, v))),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
@pytest.mark.parametrize(("starts", "window"), [([0], None), ([0, 4, 5, 6], None), ([0, 4, 5, 6], 3)])
def test_scores_are_capped_by_whatever_kernel(kernel, starts, window):
    key_mask = left_padded(0, 4)
    q, k, v = tensors()
    real = key_mask[:, None, :, None]
    expected, other = (whole_attention(q, k, v, key_mask, window, cap) * real for cap in (0.8, None))
    out = segmented(q, k, v, key_mask, starts, kernel, window=window, cap=0.8)
    assert out.isfinite().all() and (expected - other).abs().max() > 0.1
    for actual, wanted in zip(
        (out * real, *torch.autograd.grad((out * real).square().sum(), (q, k, v))),
        (expected, *torch.autograd.grad(expected.square().sum(), (q, k, v))),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-10)


@settings(max_examples=6, deadline=None)  # interpreted, it takes a second or two for each
@given(data=st.data())
def test_forward_and_gradients_of_triton_equal_whole_attention(data):
    check_against_whole_attention("triton", data)


@pytest.mark.parametrize("kernel", KERNELS)
def test_keys_may_be_left_out_anywhere(kernel):
    q, k, v = tensors()
    key_mask = (torch.rand(L, B, generator=torch.Generator().manual_seed(0)) < 0.6).T  # nor need it be contiguous
    expected = whole_attention(q, k, v, key_mask)
    expected_grads = torch.autograd.grad(expected.sum(), (q, k, v))
    out = segmented(q, k, v, key_mask, [0, 4, 5, 6], kernel)
    for actual, wanted in zip(
        (out, *torch.autograd.grad(out.sum(), (q, k, v))), (expected, *expected_grads), strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


class _OnceForEachBackward(torch.autograd.Function):
    """`segmented` with a new graph for every backward: gradcheck runs several, of which a cache allows one."""

    @staticmethod
    def forward(ctx, q, k, v, *arguments):
        ctx.save_for_backward(q, k, v)
        ctx.arguments = arguments
        return segmented(q, k, v, *arguments)

    @staticmethod
    def backward(ctx, grad_out):
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = segmented(*inputs, *ctx.arguments)
        return *torch.autograd.grad(out, inputs, grad_out), None, None, None


@pytest.mark.parametrize("kernel", ["reference", "cpu", "flash"])  # Triton, interpreted, would take half a minute
def test_gradcheck(kernel):
    key_mask = left_padded(0, 2, length=5)
    assert torch.autograd.gradcheck(
        lambda *qkv: _OnceForEachBackward.apply(*qkv, key_mask, [0, 3, 4], kernel),
        tensors(heads=2, kv_heads=1, length=5, dim=3),
    )


def test_the_packages_example():
    assert doctest.testmod(multicoco_kernels) == (0, 8)  # failures, examples


def test_the_compiled_kernel_is_the_one_under_test():
    assert cpu._extension() is not None


@pytest.mark.parametrize("kernel", KERNELS)
def test_same_inputs_give_the_same_bits_whatever_the_number_of_threads(kernel):
    results = []
    threads = torch.get_num_threads()
    for n in (threads, threads, 1):
        torch.set_num_threads(n if kernel == "cpu" else threads)  # PyTorch's own matmul may depend on it
        q, k, v = tensors(heads=6, length=300, dim=64, dtype=torch.float32)
        out = segmented(q, k, v, left_padded(0, 9, length=300), [0, 256, 257, 258], kernel)
        out.square().sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    torch.set_num_threads(threads)
    for other in results[1:2] if kernel == "reference" else results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_buffers_are_reused_across_steps_and_shapes(kernel):
    pool, seen = BufferPool(), []
    for step, length in enumerate((9, 9, 7, L, 9, L)):
        q, k, v = tensors(step, length=length)
        key_mask = left_padded(0, 2, length=length)
        expected = torch.autograd.grad(whole_attention(q, k, v, key_mask).sum(), (q, k, v))
        out = segmented(q, k, v, key_mask, [0, 4, 5], kernel, pool)
        grads = torch.autograd.grad(out.sum(), (q, k, v))
        seen.append({buffer.data_ptr() for buffer in pool.free})
        for actual, wanted in zip(grads, expected, strict=True):  # nothing of an earlier step is left in them
            torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)
    assert [len(pointers) for pointers in seen] == [4] * 6  # keys, values and their gradients
    assert seen[0] == seen[1] == seen[2] and seen[3] == seen[4] == seen[5]


def test_a_cache_in_use_shares_nothing_with_the_next():
    q, k, v = tensors()
    key_mask, pool = left_padded(0, 0), BufferPool()
    first = segmented(q, k, v, key_mask, [0, 4], pool=pool)
    segmented(q + 1, k + 1, v + 1, key_mask, [0, 4], pool=pool)
    grads = torch.autograd.grad(first.sum(), (q, k, v))
    expected = torch.autograd.grad(whole_attention(q, k, v, key_mask).sum(), (q, k, v))
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


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
@pytest.mark.parametrize("kernel", KERNELS)
def test_lower_precision_stays_within_its_rounding(kernel, dtype, tolerance):
    key_mask = left_padded(0, 3)
    exact = tensors()
    expected = whole_attention(*exact, key_mask)
    expected.sum().backward()
    rounded = [x.detach().to(dtype).requires_grad_() for x in exact]
    out = segmented(*rounded, key_mask, [0, 5, 6, 7], kernel)
    out.sum().backward()
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    for actual, wanted in zip(rounded, exact, strict=True):
        torch.testing.assert_close(actual.grad.double(), wanted.grad, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("kernel", KERNELS)
def test_non_contiguous_inputs(kernel):
    key_mask = left_padded(1, 0)
    q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in tensors())
    assert not q.is_contiguous()
    torch.testing.assert_close(segmented(q, k, v, key_mask, [0, 4, 5], kernel), whole_attention(q, k, v, key_mask))


def test_nothing_of_keys_and_values_is_saved_for_backward():
    q, k, v = tensors()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        cache = new_cache(k, left_padded(0, 0))
        cached_attention(q[:, :, :4], k[:, :, :4], v[:, :, :4], first_handle(q.device), cache, 0, 1.0)
    assert sorted(saved) == sorted([(B, H, 4, D), (B, H, 4, D), (B, H, 4)])  # q, out, log-sum-exp


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
    cache = new_cache(k, left_padded(0, 0))
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


def test_kernels_that_cannot_run_are_refused(monkeypatch):
    cpu_device, gpu = torch.device("cpu"), torch.device("cuda")
    assert implementation("auto", cpu_device) is cpu and implementation("auto", gpu).__name__.endswith("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="'triton' needs a GPU"):
        implementation("triton", cpu_device)
    with pytest.raises(ValueError, match="no kernel 'tritom': take one of auto, "):
        implementation("tritom", gpu)
    with pytest.raises(ValueError, match="'cpu' cannot run on cuda"):
        implementation("cpu", gpu)
    monkeypatch.setattr(operator, "_triton", lambda: None)
    assert implementation("auto", gpu) is flash
    with pytest.raises(ValueError, match="'triton' needs the triton package"):
        implementation("triton", gpu)


REWRITTEN = [(0, 8), (3, 8), (3, 9), (3, L)]


def rewriting(versions, key_mask, kernel, window=None):
    """Every segment of REWRITTEN with tensors (q, k, v) of its own -> the columns that stand last, (B, H, L, D)."""
    versions = [[x.to(device_of(kernel)) for x in version] for version in versions]
    key_mask = key_mask.to(device_of(kernel))
    cache, handle, outs = new_cache(versions[0][1], key_mask, window=window), first_handle(key_mask.device), []
    for (start, end), version in zip(REWRITTEN, versions, strict=True):
        q, k, v = (x[:, :, start:end] for x in version)
        out, handle = cached_attention(q, k, v, handle, cache, start, D**-0.5, kernel)
        outs.append(out)
    return [out.cpu() for out in outs]


@pytest.mark.parametrize(("kernel", "window"), [*((kernel, None) for kernel in KERNELS), ("flash", 4)])
def test_columns_that_are_written_again_have_the_gradients_of_each_writing(kernel, window):
    """Every output against the whole attention over what stands in the cache then."""
    key_mask = left_padded(0, 2)
    versions = [tensors(seed) for seed in range(len(REWRITTEN))]
    weights = [torch.randn(B, H, end - start, D, dtype=torch.float64) for start, end in REWRITTEN]
    expected = torch.zeros((), dtype=torch.float64)
    for i, ((start, end), weight) in enumerate(zip(REWRITTEN, weights, strict=True)):
        own, first = versions[i], versions[0]
        q, k, v = (torch.cat([a[:, :, :start], b[:, :, start:end]], 2) for a, b in zip(first, own, strict=True))
        real = key_mask[:, None, start:end, None]
        expected = expected + (whole_attention(q, k, v, key_mask[:, :end], window)[:, :, start:] * weight * real).sum()
    leaves = [x for version in versions for x in version]
    wanted = torch.autograd.grad(expected, leaves)
    outs = rewriting(versions, key_mask, kernel, window)
    real = [key_mask[:, None, start:end, None] for start, end in REWRITTEN]
    total = sum((out * weight * mask).sum() for out, weight, mask in zip(outs, weights, real, strict=True))
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-10)
    for actual, gradient in zip(torch.autograd.grad(total, leaves), wanted, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-9, atol=1e-10)


def test_what_is_kept_is_what_is_written_over_and_nothing_without_a_gradient():
    q, k, v = (x.detach() for x in tensors())
    cache, other = (new_cache(k, left_padded(0, 0)) for _ in range(2))
    _, handle = cached_attention(q[:, :, :8], k[:, :, :8], v[:, :, :8], first_handle(q.device), cache, 0, 1.0)
    out, _ = cached_attention(q[:, :, 3:], k[:, :, 3:], v[:, :, 3:], handle, cache, 3, 1.0)
    kept = out.grad_fn.overwritten
    assert torch.equal(kept.keys, k[:, :, 3:8]) and torch.equal(kept.values, v[:, :, 3:8]) and kept.start == 3
    with pytest.raises(RuntimeError, match="segment 1 of a cache is run again, but segment 2 has written over"):
        cached_attention(q[:, :, :8], k[:, :, :8], v[:, :, :8], first_handle(q.device), cache, 0, 1.0)
    with torch.no_grad():
        _, handle = cached_attention(q[:, :, :8], k[:, :, :8], v[:, :, :8], first_handle(q.device), other, 0, 1.0)
    assert other.overwrite(2, 3, 8, keeps=False) is None


def test_stale_handles_and_caches_are_refused():
    q, k, v = (x[:, :, :4] for x in tensors())
    cache, other = (new_cache(k, left_padded(0, 0)) for _ in range(2))
    out, handle = cached_attention(q, k, v, first_handle(q.device), cache, 0, 1.0)
    with pytest.raises(
        ValueError, match=r"stale handle: of this cache, .* column 4 or .* this one is \[5, 9\), q \(2, 4, 4, 8\)"
    ):
        cached_attention(q, k, v, handle, cache, 5, 1.0)
    with pytest.raises(ValueError, match=r"stale handle: of this cache, .* this one is \[1, 3\)"):
        cached_attention(q[:, :, :2], k[:, :, :2], v[:, :, :2], handle, cache, 1, 1.0)  # ends before what is there
    with pytest.raises(ValueError, match="stale handle: of another cache"):
        cached_attention(q, k, v, handle, other, 4, 1.0)
    out.sum().backward()
    with pytest.raises(RuntimeError, match="is over"):
        cached_attention(q, k, v, handle, cache, 4, 1.0)


def test_without_a_compiler_pytorchs_own_kernel_takes_over_with_one_warning(monkeypatch, tmp_path):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("no c++ here")

    monkeypatch.setattr("torch.utils.cpp_extension.load", no_compiler)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(cpu, "extension_name", lambda: "multicoco_not_built")
    cpu._extension.cache_clear()
    try:
        q, k, v = tensors()
        key_mask = left_padded(0, 3)
        with pytest.warns(UserWarning, match="could not be built .no c.. here.") as caught:
            out = segmented(q, k, v, key_mask, [0, 4, 5], "cpu")
        assert len(caught) == 1
        torch.testing.assert_close(out, whole_attention(q, k, v, key_mask))
    finally:
        cpu._extension.cache_clear()
