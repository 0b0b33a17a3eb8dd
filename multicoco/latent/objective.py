"""What is minimised, where that is more than the language model's loss on the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
        on_host: the labels, and tensors of the supervision, on the CPU, as far as they are there.
    """

    passes: Passes
    labels: Tensor
    divisor: Tensor | float | None
    supervision: dict[str, Any]
    on_host: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def labels_on_host(self) -> Tensor | None:
        return self.on_host.get("labels")

    def known(self, name: str) -> Tensor:
        """Of the supervision, for what is asked of its values: on the CPU where it is there, so that nobody waits."""
        tensor: Tensor = self.on_host.get(name, self.supervision[name])
        return tensor


class Objective(nn.Module):
    """A training loss of its own. Its parameters are trained with the model's; they go on with a run, and are no part
    of what it saves to be used.

    `supervision` below is what the collator makes of a batch's rows (`data.collate.supervision_of`), with `divisors`:
    what its parts are divided by, in the order of `Method.counts`. Modules must be called alike whatever a batch holds.
    """

    def asked(self, reasoner: LatentReasoner, supervision: dict[str, Any]) -> Asked:
        """Of the passes."""
        return NOTHING

    def runs(self, model: PreTrainedModel) -> PreTrainedModel | None:
        """What it runs besides the passes: a language model without its head; None: nothing."""
        return None

    def weights_of_others(self) -> dict[nn.Module, nn.Module]:
        """Its modules that compute with the parameters of others: by the former, the latter. ZeRO-3 must know them."""
        return {}

    def forward(self, reasoner: LatentReasoner, batch: Supervised) -> Tensor:
        """A scalar."""
        raise NotImplementedError
