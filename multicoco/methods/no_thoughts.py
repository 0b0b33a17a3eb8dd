"""Coconut's curriculum without its thoughts: written steps go stage by stage, and nothing takes their place.

"w/o thought" in table 1 of Hao et al. 2024 (arXiv:2412.06769): tells the curriculum's part from that of the thoughts.
"""

from dataclasses import replace

from multicoco.curriculum import StageSchedule
from multicoco.methods.coconut import Coconut


class NoThoughts(Coconut):
    """Question, the two markers with nothing between them, the steps still written, answer."""

    def _schedule(self) -> StageSchedule:
        return replace(super()._schedule(), c_thought=0)


class NoMarkers(NoThoughts):
    """Question, the steps still written, answer. The latent tokens stay in the vocabulary: one thing changes."""

    has_markers = False
