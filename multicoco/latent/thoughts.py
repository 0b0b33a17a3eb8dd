"""What a latent position is fed: the content of a thought."""

from collections.abc import Callable

import torch
from torch import Tensor

# (hidden (B, D), k) -> (B, D): the embeddings of the batch's k-th latent column (from 0), from the last hidden states,
# after the model's last norm, of the column before it. An nn.Module's parameters are trained with the model's.
ThoughtSource = Callable[[Tensor, int], Tensor]


def hidden_state(hidden: Tensor, k: int) -> Tensor:
    """The hidden state itself (Hao et al. 2024, arXiv:2412.06769, section 3)."""
    return hidden


def constant_before_last(hidden: Tensor, n_left: Tensor, gradient_passes: int | None) -> Tensor:
    """Truncated backpropagation: hidden states (B, D), as constants where they are of none of a row's last passes.

    Args:
        n_left: (B,), the thoughts that a row has still to be fed, this one included.
        gradient_passes: through how many of its last passes a row's gradient goes; None: through all.
    """
    if gradient_passes is None:
        return hidden
    return torch.where((n_left <= gradient_passes)[:, None], hidden, hidden.detach())


# (thoughts (B, D), k (B,)) -> (B, D): what is fed in their place at evaluation. k counts each row's own thoughts from 0
# and is -1 for a row that has none in this column, whose result is not read.
Replacement = Callable[[Tensor, Tensor], Tensor]


def keep(thoughts: Tensor, k: Tensor) -> Tensor:
    """The thoughts themselves."""
    return thoughts
