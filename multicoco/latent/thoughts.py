"""What a latent position is fed: the content of a thought."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# (hidden (B, C, D), k (B, C)) -> (B, C, D): what is fed in columns of the batch, from the last hidden states, after the
# model's last norm, of the columns before them. k says which of its row's thoughts stands there, from 0, or is -1 where
# none does, whose result is not read. An nn.Module's parameters are trained with the model's.
ThoughtSource = Callable[[Tensor, Tensor], Tensor]


def hidden_state(hidden: Tensor, k: Tensor) -> Tensor:
    """The hidden state itself (Hao et al. 2024, arXiv:2412.06769, section 3)."""
    return hidden


def put(embeds: Tensor, is_latent: Tensor, contents: Tensor) -> Tensor:
    """embeds (B, T, D) with the latent positions (B, T) of each row holding its contents (B, K, D), in their order."""
    order = (is_latent.cumsum(-1) - 1).clamp(0, contents.shape[1] - 1)[..., None].expand_as(embeds)
    return torch.where(is_latent[..., None], contents.gather(1, order), embeds)


class Projection(nn.Module):
    """What is made of a thought before it is fed: a projection, then a norm, either of which may be left out.

    linear: LayerNorm(W x + b). mlp: LayerNorm(W' gelu(W x + b) + b'), as CODI (Shen et al. 2025, arXiv:2502.21074,
    section 3.3). All are of the model's width, and in its dtype.

    Args:
        model: gives these.
        to_embeddings: bring every thought to the mean norm of the model's input embeddings, as they are now.
        seed: of the initial weights.
    """

    target_norm: Tensor | None

    def __init__(
        self, model: PreTrainedModel, kind: Literal["none", "linear", "mlp"], to_embeddings: bool = False, seed: int = 0
    ):
        super().__init__()
        embeddings: Any = model.get_input_embeddings()
        table: Tensor = embeddings.weight.detach()
        width = table.shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers: list[nn.Module] = [nn.Linear(width, width)] if kind != "none" else []
            layers += [nn.GELU(), nn.Linear(width, width)] if kind == "mlp" else []
        layers += [nn.LayerNorm(width)] if layers else []
        self.layers = nn.Sequential(*layers)
        self.register_buffer("target_norm", _norms(table).mean() if to_embeddings else None)
        self.to(table.dtype)

    def forward(self, thoughts: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        thoughts = self.layers(thoughts)
        if self.target_norm is None:
            return thoughts
        return (thoughts * (self.target_norm / _norms(thoughts))).to(thoughts.dtype)


def _norms(vectors: Tensor) -> Tensor:
    """(..., D) -> (..., 1), in at least fp32 and never near 0, by which they could not be divided."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    norms: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return norms.clamp(min=torch.finfo(norms.dtype).eps)


class Projected(nn.Module):
    """A `ThoughtSource`: what another one gives, projected, (..., D) -> (..., D)."""

    def __init__(self, source: ThoughtSource, projection: nn.Module):
        super().__init__()
        self.source = source
        self.projection = projection

    def forward(self, hidden: Tensor, k: Tensor) -> Tensor:
        thoughts: Tensor = self.projection(self.source(hidden, k))
        return thoughts


def constant_before_last(hidden: Tensor, n_left: Tensor, gradient_passes: int | None) -> Tensor:
    """Truncated backpropagation: hidden states (B, C, D), as constants where what they make is none of a row's last
    thoughts.

    Args:
        n_left: (B, C), the thoughts that a row has still to be fed, this one included.
        gradient_passes: through how many of its last thoughts a row's gradient goes; None: through all.
    """
    if gradient_passes is None:
        return hidden
    return torch.where((n_left <= gradient_passes)[..., None], hidden, hidden.detach())


# (thoughts (B, C, D), k (B, C)) -> (B, C, D): what is fed in their place at evaluation; k as of a `ThoughtSource`.
Replacement = Callable[[Tensor, Tensor], Tensor]


def keep(thoughts: Tensor, k: Tensor) -> Tensor:
    """The thoughts themselves."""
    return thoughts
