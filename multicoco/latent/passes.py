"""The passes over the language model: columns are run in the order of a schedule, over one cache, and thoughts are put
in as soon as what they are made of is there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from multicoco.latent.cache import Segment, StaticKVCache, no_mask, rotary_tables
from multicoco.latent.column_graphs import ColumnGraphs
from multicoco.latent.places import Places
from multicoco.latent.schedule import Pass, inner_columns
from multicoco.latent.thoughts import Projected, Replacement, ThoughtSource, constant_before_last
from multicoco.latent.weight_gradients import stacked_columns
from multicoco.models.families import Embedded


@dataclass(frozen=True)
class Passes:
    """The result of the latent passes over a batch (B, T).

    Attributes:
        hidden: (B, T, D) last hidden states, of a column that was run again those of the last time.
        embeds: (B, T, D) what was fed, likewise.
        made_of: of the columns that were given thoughts, the hidden states (B, ., D) that these were made of, likewise.
        places: of the thoughts.
        cache: keys and values.
        visible: (B, T) the columns that may be attended to by what follows.
        position_ids: (B, T), or with further axes in front.
        further: as of `models.families.Embedded`.
        layers: (B, N, M, D) the hidden states of the M layers in N columns of each row, if they were asked for; the
            last layer's after the model's last norm.
    """

    hidden: Tensor
    embeds: Tensor
    made_of: "Columns"
    places: Places
    cache: StaticKVCache
    visible: Tensor
    position_ids: Tensor
    further: Callable[[slice], dict[str, Any]]
    layers: Tensor | None = None

    @property
    def thoughts(self) -> Tensor:
        """(B, C, D): what was fed to the C columns in which any row is latent; 0 in rows that are not."""
        if not self.places.columns:
            return self.embeds[:, :0]
        parts = [self.embeds[:, c].masked_fill(self.places.k[:, c, None] < 0, 0) for c in self.places.columns]
        return torch.stack(parts, dim=1)

    def thoughts_by_row(self) -> list[Tensor]:
        """The K thoughts of each row, (K, D), on the CPU."""
        thoughts, is_latent = self.thoughts.cpu(), self.places.is_latent[:, self.places.columns].cpu()
        return [row[own] for row, own in zip(thoughts, is_latent, strict=True)]

    def unprojected(self, source: ThoughtSource) -> Tensor:
        """(B, T, D): `embeds`, but where the source of the thoughts projects them what it projected, which the model's
        head can read; what was fed in its place does not matter there."""
        if not isinstance(source, Projected):
            return self.embeds
        embeds = self.embeds.clone()
        for c in self.places.columns:
            k = self.places.k[:, c : c + 1]
            thoughts = source.source(self.made_of.read(c, c + 1), k)
            embeds[:, c : c + 1] = torch.where((k >= 0)[..., None], thoughts, embeds[:, c : c + 1])
        return embeds

    def length_before_last(self) -> int:
        """Of the columns whose cache is gone on from: the last one is run again, with what follows it.

        Raises:
            ValueError: by its embedding alone the last column would not be what it was.
        """
        length = self.embeds.shape[1]
        if taken := self.further(slice(length - 1, length)):
            raise ValueError(f"a prompt cannot end with an image where images enter by {', '.join(taken)}: add text")
        return length - 1


@dataclass(frozen=True)
class Thinking:
    """What latent columns are fed.

    Attributes:
        k: (B, T), which of its row's thoughts stands there, from 0; -1 where none does.
        source, gradient_passes: as of `LatentReasoner`.
        replace: what is done to thoughts that are made.
    """

    k: Tensor
    source: ThoughtSource
    gradient_passes: int | None
    replace: Replacement

    def put(self, embeds: Tensor, before: Tensor, start: int) -> Tensor:
        """Columns (B, C, D) from `start` on with their thoughts, made of the hidden states of the columns before them.

        The source is called whether or not any row has one there: a module of its own is called alike on all ranks.
        """
        k = self.k[:, start : start + embeds.shape[1]]
        n_left = self.k.amax(-1, keepdim=True) + 1 - k
        thoughts = self.source(constant_before_last(before, n_left, self.gradient_passes), k)
        return torch.where((k >= 0)[..., None], self.replace(thoughts, k), embeds)


class Columns:
    """Tensors (B, S, D) by their columns; what is written from a column on takes the place of what was there."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Tensor]] = []  # by first column

    def write(self, start: int, part: Tensor) -> None:
        while self._parts and self._parts[-1][0] >= start:
            self._parts.pop()
        if self._parts:
            first, left = self._parts[-1]
            self._parts[-1] = first, left[:, : start - first]
        self._parts.append((start, part))

    def read(self, start: int, end: int) -> Tensor:
        """(B, end - start, D)"""
        found = [(first, part) for first, part in self._parts if first < end and first + part.shape[1] > start]
        return torch.cat([part[:, max(start - first, 0) : end - first] for first, part in found], dim=1)

    def whole(self) -> Tensor:
        return torch.cat([part for _, part in self._parts], dim=1)


def run(
    decoder: PreTrainedModel,
    embedded: Embedded,
    position_ids: Tensor,
    passes: Sequence[Pass],
    thinking: Thinking,
    cache: StaticKVCache,
    hidden_from: Mapping[int, Tensor],
    tapped: Tensor | None,
    graphs: ColumnGraphs | None,
) -> tuple[Tensor, Tensor, Columns, Tensor | None]:
    """Runs a batch (B, T).

    Args:
        embedded: without the thoughts that `thinking` puts in.
        cache: an empty one.
        hidden_from: by column at which a pass begins, (B, T) bool of what is no key any more from there on.
        tapped: as of `Asked`.
        graphs: what runs single columns between other passes, where it can.

    Returns: `hidden`, `embeds`, `made_of` and `layers` of `Passes`.
    """
    hidden, fed, made_of, layers, segment = Columns(), Columns(), Columns(), None, None
    mask, inner = no_mask(embedded.embeds), inner_columns(passes)
    with stacked_columns(), rotary_tables(decoder, embedded.embeds, position_ids) as tables:
        for number, one in enumerate(passes):
            start, end, fills = one.start, one.end, one.fills
            embeds = embedded.embeds[:, start:end]
            if fills:
                before = hidden.read(start - 1, start - 1 + fills)
                made_of.write(start, before)
                embeds = torch.cat([thinking.put(embeds[:, :fills], before, start), embeds[:, fills:]], dim=1)
            if start in hidden_from:
                cache.hide(hidden_from[start])
            segment = Segment(cache, one.column, previous=segment)
            tables.choose(start, end)
            positions, further = position_ids[..., start:end], embedded.further(slice(start, end))
            last: Tensor | None = None
            if graphs is not None and number in inner and not further:
                last = graphs.run(decoder, number, segment, embeds, positions, tables)
            if last is None:
                out = decoder(
                    inputs_embeds=embeds,
                    attention_mask=mask,
                    position_ids=positions,
                    use_cache=False,
                    segment=segment,
                    output_hidden_states=tapped is not None,
                    **further,
                )
                last = out.last_hidden_state
            hidden.write(start, last)
            fed.write(start, embeds)
            if tapped is not None:
                layers = tap(layers, out.hidden_states[1:], tapped - start)
    return hidden.whole(), fed.whole(), made_of, layers


def tap(before: Tensor | None, layers: Sequence[Tensor], columns: Tensor) -> Tensor:
    """(B, N, M, D): of each row, the hidden states that M layers have given in columns of the passes so far.

    Args:
        before: what the passes before have given.
        layers: (B, S, D) each, of this pass.
        columns: (B, N), of the pass; past its ends for those that are in another one.
    """
    length = layers[0].shape[1]
    index = columns.clamp(0, length - 1)[..., None].expand(-1, -1, layers[0].shape[2])
    here = torch.stack([layer.gather(1, index) for layer in layers], dim=2)
    is_here = ((columns >= 0) & (columns < length))[..., None, None]
    return torch.where(is_here, here, torch.zeros_like(here) if before is None else before)
