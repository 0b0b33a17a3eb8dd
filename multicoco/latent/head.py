"""What a model makes of its head's logits before they are anybody's: known from its config alone, by its kind, as the
same key multiplies in one and divides in another. Kinds whose keys are not here are refused (`latent.kinds`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel


class _Keys(NamedTuple):
    """Of a config."""

    factor: str | None = None
    divisor: str | None = None
    cap: str | None = None


_CAPPED, _DIVIDED = _Keys(cap="final_logit_softcapping"), _Keys(divisor="logits_scaling")
_MULTIPLIED = _Keys(factor="logit_scale")
_KEYS = {
    **dict.fromkeys(("gemma2", "gemma3_text", "nanochat", "vaultgemma"), _CAPPED),
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), _MULTIPLIED),
    **dict.fromkeys(("granite", "granitemoe", "granitemoeshared"), _DIVIDED),
    "hyperclovax": _Keys(factor="logits_scaling"),
}


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


def rescaling_keys(config: PreTrainedConfig) -> set[str]:
    """Those of a model's config that `rescaling_of` reads."""
    return {key for key in _KEYS.get(config.model_type, _Keys()) if key is not None}


def rescaling_of(config: PreTrainedConfig) -> Rescaling:
    """What a model does to its logits."""
    keys = _KEYS.get(config.model_type, _Keys())
    factor, divisor, cap = (None if key is None else getattr(config, key) for key in keys)
    return Rescaling((1.0 if factor is None else factor) / (1.0 if divisor is None else divisor), cap)


def logits_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """(..., D) last hidden states -> (..., V) logits, as the model's own forward gives them."""
    rescaled = rescaling_of(model.config)

    def logits(hidden: Tensor) -> Tensor:
        head: Any = model.get_output_embeddings()
        return rescaled(head(hidden))

    return logits
