"""Batches for the latent passes: rows of different lengths, padded so that their latent columns line up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multicoco.curriculum import IGNORE_INDEX, Supervision

BatchInputs = Callable[[Sequence[dict[str, Tensor]]], dict[str, Tensor]]  # `models.families.Family.batch`


@dataclass
class Row:
    """One laid-out example.

    Attributes:
        index: of the example in its data set.
        counted: False for a filler row, and for a donor.
        inputs: its image tensors by name.
        seed: of what is drawn for it.
        donor: the row whose thoughts it is fed, if it borrows.
        supervision, teacher: what the method's loss asks besides, and the row of its teacher, if it has one.
    """

    input_ids: list[int]
    labels: list[int]
    index: int
    counted: bool = True
    inputs: dict[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    donor: "Row | None" = None
    supervision: Supervision | None = None
    teacher: "Row | None" = None


class Collator:
    """Pads and stacks rows.

    For training the first latent columns are aligned, so that the batch needs as few passes as its longest chain
    of latents; rows without latents go to the left edge. For generation all rows end in the same column. The donors of
    rows that borrow, or the teachers of rows that have one, follow them, in the same order, as the second half of the
    batch.

    Args:
        pad_token_id, latent_token_id: ids; the latent one is None where there are no latent tokens.
        batch_inputs: puts the image tensors of all rows together.
        for_generation: align the ends.
        min_length: pad the batch to at least that many columns (the number of passes).
    """

    def __init__(
        self,
        pad_token_id: int,
        latent_token_id: int | None,
        batch_inputs: BatchInputs,
        for_generation: bool = False,
        min_length: int = 1,
    ):
        self.pad_token_id = pad_token_id
        self.latent_token_id = latent_token_id
        self.batch_inputs = batch_inputs
        self.for_generation = for_generation
        self.min_length = min_length

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """input_ids, attention_mask, labels: (B, T); inputs: the model's further tensors; seeds (B,); index, counted:
        lists; supervision: tensors
        by name (`supervision_of`), if the rows have any."""
        own = rows
        rows = [*rows, *(beside for row in rows for beside in (row.donor, row.teacher) if beside is not None)]
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
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "inputs": self.batch_inputs([row.inputs for row in rows]),
            "seeds": torch.tensor([row.seed for row in rows]),
            "index": [row.index for row in rows],
            "counted": [row.counted for row in rows],
            "supervision": supervision_of(own, [pad + len(row.input_ids) for pad, row in zip(left, rows, strict=True)]),
        }

    def _left_padding(self, rows: Sequence[Row]) -> list[int]:
        first = [
            row.input_ids.index(self.latent_token_id) if self.latent_token_id in row.input_ids else None for row in rows
        ]
        furthest = max((column for column in first if column is not None), default=0)
        return [0 if column is None else furthest - column for column in first]


def supervision_of(rows: Sequence[Row], ends: Sequence[int]) -> dict[str, Tensor]:
    """What the loss asks of B rows; nothing if they have no supervision.

    Args:
        ends: the column after each row's last token, and after their teachers'.

    Returns: by name
        stretches: (B, K, S) token ids, filled up with IGNORE_INDEX; K and S are at least 1.
        announced: (B,) or, with teachers, (2B,): the last column before the answer.
        counted: (B,) bool, False for filler rows.
    """
    asked = [row.supervision for row in rows if row.supervision is not None]
    if not asked:
        return {}
    n_thoughts = max([1, *(len(one.stretches) for one in asked)])
    longest = max([1, *(len(stretch) for one in asked for stretch in one.stretches)])
    stretches = torch.full((len(asked), n_thoughts, longest), IGNORE_INDEX)
    for i, one in enumerate(asked):
        for j, stretch in enumerate(one.stretches):
            stretches[i, j, : len(stretch)] = torch.tensor(stretch, dtype=torch.long)
    answers = [one.answer for one in asked] * (len(ends) // len(asked))
    return {
        "stretches": stretches,
        "announced": torch.tensor([end - answer - 1 for end, answer in zip(ends, answers, strict=True)]),
        "counted": torch.tensor([row.counted for row in rows]),
    }
