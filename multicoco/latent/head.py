"""A model's logits, outside of its own forward."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from multicoco.latent.kinds import rescaling_of


def logits_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """(..., D) last hidden states -> (..., V) logits, as the model's own forward gives them."""
    rescaled = rescaling_of(model.config)

    def logits(hidden: Tensor) -> Tensor:
        head: Any = model.get_output_embeddings()
        return rescaled(head(hidden))

    return logits
