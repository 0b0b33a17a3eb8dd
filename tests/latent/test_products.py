import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multicoco.latent.products import linear


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=2),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    bias=st.booleans(),
    transposed=st.tuples(st.booleans(), st.booleans()),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_it_is_the_product_whatever_the_strides(shape, inputs, outputs, bias, transposed, dtype):
    x = torch.randn(inputs, *shape).movedim(0, -1) if transposed[0] else torch.randn(*shape, inputs)
    weight = torch.randn(inputs, outputs).t() if transposed[1] else torch.randn(outputs, inputs)
    x, weight, b = x.to(dtype), weight.to(dtype), torch.randn(outputs).to(dtype) if bias else None
    expected = (x.double()[..., None, :] * weight.double()).sum(-1) + (0 if b is None else b.double())
    # sums of up to 40 products, in each type's rounding
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    actual = linear(x, weight, b)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("enabled", [True, False])
def test_onednn_may_be_switched_off(monkeypatch, enabled):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", enabled)
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    with torch.profiler.profile() as profiler:
        linear(x, weight)
    assert any("mkldnn" in event.key for event in profiler.key_averages()) == enabled
