"""What is minimised, where that is more than the language model's loss on the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from multicoco.latent.passes import Passes
    from multicoco.latent.reasoner import LatentReasoner


@dataclass(frozen=True)
class Asked:
    """What an objective asks of the passes over a batch (B, T).

    Attributes:
        given: (B, K, D), what the thoughts of each row are fed, in their order, if that is known before any pass; then
            one pass does.
        tapped: (B, N), columns of each row of which the hidden states of every layer are wanted.
    """

    given: Tensor | None = None
    tapped: Tensor | None = None


NOTHING = Asked()


@dataclass(frozen=True)
class Supervised:
    """A batch after its passes.

    Attributes:
        labels, divisor: as of `LatentReasoner.forward`.
        supervision: see `Objective`.
        labels_on_host: the labels on the CPU, where they are there.
    """

    passes: Passes
    labels: Tensor
    divisor: Tensor | float | None
    supervision: dict[str, Any]
    labels_on_host: Tensor | None = None


class Objective(nn.Module):
    """A training loss of its own. Its parameters are trained with the model's; they go on with a run, and are no part
    of what it saves to be used.

    `supervision` below is what the collator makes of a batch's rows (`data.collate.supervision_of`), with `divisors`:
    what its parts are divided by, in the order of `Method.counts`. Modules must be called alike whatever a batch holds.
    """

    def asked(self, reasoner: LatentReasoner, supervision: dict[str, Any]) -> Asked:
        """Of the passes."""
        return NOTHING

    def weights_of_others(self) -> dict[nn.Module, nn.Module]:
        """Its modules that compute with the parameters of others: by the former, the latter. ZeRO-3 must know them."""
        return {}

    def forward(self, reasoner: LatentReasoner, batch: Supervised) -> Tensor:
        """A scalar."""
        raise NotImplementedError
