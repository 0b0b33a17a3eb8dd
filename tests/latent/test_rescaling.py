import pytest
import torch

from multicoco.latent.rescaling import AS_THEY_ARE, Rescaling


def test_what_is_left_alone_is_not_even_copied():
    logits = torch.randn(3, 32)
    assert AS_THEY_ARE(logits) is logits is AS_THEY_ARE.in_place(logits) and AS_THEY_ARE.slope(logits) is None


@pytest.mark.parametrize("rescaling", [Rescaling(cap=1.5), Rescaling(0.25), Rescaling(3.0, 1.5)])
def test_in_place_it_is_the_same_and_its_slope_is_autograds(rescaling):
    logits = (3 * torch.randn(5, 7, dtype=torch.float64)).requires_grad_()
    result = rescaling(logits)
    [gradient] = torch.autograd.grad(result.sum(), logits)
    again = rescaling.in_place(logits.detach().clone())
    assert torch.equal(again, result) and rescaling.cap in (None, 1.5)
    torch.testing.assert_close(torch.zeros_like(again) + rescaling.slope(again), gradient, rtol=1e-12, atol=1e-12)
