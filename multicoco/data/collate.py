"""Batches for the latent passes: rows of different lengths, padded so that their latent columns line up."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multicoco.curriculum import IGNORE_INDEX


@dataclass
class Row:
    """One laid-out example. `pixel_values`: (tiles, 3, H, W) or None. `counted`: False for a filler row."""

    input_ids: list[int]
    labels: list[int]
    pixel_values: Tensor | None
    index: int
    counted: bool = True


class Collator:
    """Pads and stacks rows.

    For training the first latent columns are aligned, so that the batch needs as few passes as its longest chain
    of latents; rows without latents go to the left edge. For generation all rows end in the same column.

    Args:
        pad_token_id, latent_token_id: ids; the latent one is None where there are no latent tokens.
        for_generation: align the ends.
        min_length: pad the batch to at least that many columns (the number of passes).
    """

    def __init__(
        self,
        pad_token_id: int,
        latent_token_id: int | None,
        for_generation: bool = False,
        min_length: int = 1,
    ):
        self.pad_token_id = pad_token_id
        self.latent_token_id = latent_token_id
        self.for_generation = for_generation
        self.min_length = min_length

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor | list | None]:
        """input_ids, attention_mask, labels: (B, T); pixel_values: (N, 3, H, W) or None; index, counted: lists."""
        left = self._left_padding(rows)
        length = max(self.min_length, *(pad + len(row.input_ids) for pad, row in zip(left, rows, strict=True)))
        if self.for_generation:
            left = [length - len(row.input_ids) for row in rows]
        input_ids = torch.full((len(rows), length), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for i, (pad, row) in enumerate(zip(left, rows, strict=True)):
            here = slice(pad, pad + len(row.input_ids))
            input_ids[i, here] = torch.tensor(row.input_ids)
            attention_mask[i, here] = 1
            if row.counted:
                labels[i, here] = torch.tensor(row.labels)
        tiles = [row.pixel_values for row in rows if row.pixel_values is not None]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "pixel_values": torch.cat(tiles) if tiles else None,
            "index": [row.index for row in rows],
            "counted": [row.counted for row in rows],
        }

    def _left_padding(self, rows: Sequence[Row]) -> list[int]:
        first = [
            row.input_ids.index(self.latent_token_id) if self.latent_token_id in row.input_ids else None for row in rows
        ]
        furthest = max((column for column in first if column is not None), default=0)
        return [0 if column is None else furthest - column for column in first]
