"""What a model makes of its head's logits before they are anybody's; of which model, `latent.kinds` knows."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rescaling:
    """logits -> cap * tanh(factor * logits / cap); without a cap, factor * logits."""

    factor: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits if self.factor == 1 else logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def in_place(self, logits: Tensor) -> Tensor:
        """The same where no gradient is wanted of it."""
        logits = logits if self.factor == 1 else logits.mul_(self.factor)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, rescaled: Tensor) -> Tensor | float | None:
        """The derivative, from the result; None where it is 1 everywhere."""
        if self.cap is None:
            return None if self.factor == 1 else self.factor
        return (rescaled / self.cap).square_().neg_().add_(1).mul_(self.factor)


AS_THEY_ARE = Rescaling()
