"""Matrix products outside autograd, by the faster of the libraries that PyTorch has at hand, and what autocast asks."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out), as `F.linear` but without a gradient.

    Of fp32 on CPUs PyTorch makes oneDNN's products only in compiled graphs, and otherwise BLAS's: MKL, which took 1.1
    to 1.6 times as long on the AMD processors that were tried (benchmarks/baselines.py).
    """
    by_onednn = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and torch.backends.mkldnn.enabled
    if by_onednn and torch.backends.mkldnn.is_available():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What `torch.autocast` makes products in on a device; None where it is off or, as on meta, not known."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None
