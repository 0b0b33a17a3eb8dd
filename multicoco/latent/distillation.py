"""Self-distillation: the model that writes its reasoning teaches itself to think instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from multicoco.latent.objective import Objective, Supervised

if TYPE_CHECKING:
    from multicoco.latent.reasoner import LatentReasoner


class SelfDistillation(Objective):
    """CODI (Shen et al. 2025, arXiv:2502.21074, section 3.4). The batch's second half are the teachers of its first.

    loss = teacher * CE of the written reasoning and its answer + student * CE of the answer after the thoughts
    + distillation * mean over examples and layers l of smooth_l1(h_l, sg(h'_l)) / std(sg(h'_l)), with h_l and h'_l the
    hidden states (D,) of student and teacher in the column that announces the answer.
    """

    def __init__(self, teacher: float, student: float, distillation: float):
        super().__init__()
        self.teacher = teacher
        self.student = student
        self.distillation = distillation

    def tapped(self, supervision: dict[str, Tensor]) -> Tensor:
        return supervision["announced"]

    def forward(self, reasoner: LatentReasoner, batch: Supervised) -> Tensor:
        passes, labels, divisors = batch.passes, batch.labels, batch.supervision["divisors"]
        assert passes.layers is not None  # they have been asked for
        n, on_host = len(labels) // 2, batch.labels_on_host
        halves = (None, None) if on_host is None else (on_host[:n], on_host[n:])
        student = reasoner.language_loss(passes.hidden[:n], labels[:n], divisors[0], halves[0])
        teacher = reasoner.language_loss(passes.hidden[n:], labels[n:], divisors[1], halves[1])
        layers = passes.layers.to(torch.promote_types(passes.layers.dtype, torch.float32))  # [2B, M, D]
        learned, target = layers[:n], layers[n:].detach()
        spread = target.std(-1).clamp(min=torch.finfo(target.dtype).tiny)  # [B, M]
        distance = F.smooth_l1_loss(learned, target, reduction="none").mean(-1) / spread
        of_examples = distance.mean(-1).masked_fill(~batch.supervision["counted"], 0)
        distillation = of_examples.sum() / divisors[2]
        return self.teacher * teacher + self.student * student + self.distillation * distillation
