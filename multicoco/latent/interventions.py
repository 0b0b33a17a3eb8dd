"""Interventions on thoughts while the passes run: what is fed in their place is what later passes see.

An intervention is made for a batch, with all that it needs on the device before the first pass, so that none waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multicoco.interventions import Intervention
from multicoco.latent.thoughts import Replacement, keep


@dataclass(frozen=True)
class Intervened:
    """What the passes do otherwise than trained.

    Attributes:
        replace: gives what is fed in the place of a thought.
        hides: the columns after a row's thoughts cannot attend to them; positions stay. It takes a pass more, which
            begins behind the last thought.
    """

    replace: Replacement = keep
    hides: bool = False


UNTOUCHED = Intervened()


def together(parts: Sequence[Intervened]) -> Intervened:
    """One after the other, on each thought."""

    def replace(thoughts: Tensor, k: Tensor) -> Tensor:
        for part in parts:
            thoughts = part.replace(thoughts, k)
        return thoughts

    return Intervened(replace, hides=any(part.hides for part in parts))


class First:
    """h_k := h_1."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def __call__(self, thoughts: Tensor, k: Tensor) -> Tensor:
        is_first = (k == 0)[..., None]
        here = thoughts.masked_fill(~is_first, 0).sum(1, keepdim=True)  # [B, 1, D]
        self._first = here if self._first is None else torch.where(is_first.any(1, keepdim=True), here, self._first)
        return self._first.expand_as(thoughts)


def unit_noise(n_thoughts: int, width: int, bits: int) -> Tensor:
    """(K, D) fp32 Gaussian directions, each with mean 0 and norm 1, drawn from the bits."""
    noise = torch.randn(n_thoughts, width, generator=torch.Generator().manual_seed(bits))
    centred = noise - noise.mean(-1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return centred / norm


def replacement(intervention: Intervention, material: Tensor | None = None) -> Replacement:
    """What an intervention does to a batch.

    Args:
        material: (B, K, D), on the device: for noise and perturb `unit_noise` of each row, for zero and first nothing,
            for all others the thoughts that are fed.
    """
    kind, position = intervention.kind, int(intervention.number) - 1
    if kind == "only" and intervention.inner:
        inner = replacement(intervention.inner, material)
        return lambda thoughts, k: torch.where((k == position)[..., None], inner(thoughts, k), thoughts)
    if kind == "zero":
        return lambda thoughts, k: torch.zeros_like(thoughts)
    if kind == "first":
        return First()
    if kind in ("mask", "cut", "extend"):
        return keep
    assert material is not None

    def at(k: Tensor) -> Tensor:
        # [B, C, D], whatever stands there for rows without a thought
        index = k.clamp(min=0, max=material.shape[1] - 1)[..., None].expand(-1, -1, material.shape[2])
        return material.gather(1, index)

    def noise(thoughts: Tensor, k: Tensor) -> Tensor:
        wide = thoughts.to(torch.promote_types(thoughts.dtype, torch.float32))
        # perturb goes out from the thought as far as its norm says, noise from its mean as far as it was from there
        centre = wide if kind == "perturb" else wide.mean(-1, keepdim=True)
        size = intervention.number * wide if kind == "perturb" else wide - centre
        distance: Tensor = torch.linalg.vector_norm(size, dim=-1, keepdim=True)
        return (centre + distance * at(k)).to(thoughts.dtype)

    if kind in ("noise", "perturb"):
        return noise
    return lambda thoughts, k: at(k).to(thoughts.dtype)
