"""Self-distillation: the model that writes its reasoning teaches itself to think instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multicoco.curriculum import Fork
from multicoco.latent.forks import ways
from multicoco.latent.objective import Asked, Objective, Supervised

if TYPE_CHECKING:
    from multicoco.latent.reasoner import LatentReasoner


class SelfDistillation(Objective):
    """CODI (Shen et al. 2025, arXiv:2502.21074, section 3.4). The teacher of a row is its branch.

    loss = teacher * CE of the written reasoning and its answer + student * CE of the answer after the thoughts
    + distillation * mean over examples and layers l of smooth_l1(h_l, sg(h'_l)) / std(sg(h'_l)), with h_l and h'_l the
    hidden states (D,) of student and teacher in the column that announces the answer.
    """

    def __init__(self, teacher: float, student: float, distillation: float):
        super().__init__()
        self.teacher = teacher
        self.student = student
        self.distillation = distillation

    def asked(self, reasoner: LatentReasoner, supervision: dict[str, Any]) -> Asked:
        return Asked(tapped=supervision["announced"])

    def forward(self, reasoner: LatentReasoner, batch: Supervised) -> Tensor:
        passes, labels, divisors = batch.passes, batch.labels, batch.supervision["divisors"]
        assert passes.layers is not None  # they have been asked for
        fork: Fork = batch.supervision["fork"]
        on_host = (None, None) if batch.labels_on_host is None else ways(batch.labels_on_host, fork)
        hidden, of_tokens = ways(passes.hidden, fork), ways(labels, fork)
        student, teacher = map(reasoner.language_loss, hidden, of_tokens, divisors[:2], on_host)
        layers = passes.layers.to(torch.promote_types(passes.layers.dtype, torch.float32))  # [B, 2, M, D]
        learned, target = layers[:, 0], layers[:, 1].detach()
        spread = target.std(-1).clamp(min=torch.finfo(target.dtype).tiny)  # [B, M]
        distance = F.smooth_l1_loss(learned, target, reduction="none").mean(-1) / spread
        of_examples = distance.mean(-1).masked_fill(~batch.supervision["counted"], 0)
        distillation: Tensor = of_examples.sum() / divisors[2]
        return self.teacher * teacher + self.student * student + self.distillation * distillation
