"""Batches for the latent passes: rows of different lengths, padded so that their latent columns line up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multicoco.curriculum import IGNORE_INDEX, Branch, Fork, Supervision

BatchInputs = Callable[[Sequence[dict[str, Tensor]]], dict[str, Tensor]]  # `models.families.Family.batch`


@dataclass(frozen=True)
class ImageInputs:
    """The images of one example, as a model family takes them.

    Attributes:
        tokens: of each image, how it is written: how many image tokens it takes in the language model, or what else
            the family's `place_images` needs to know.
        tensors: what the model takes of them, by the names of its arguments, or what is kept of them (`Family.kept`);
            empty without images.
    """

    tokens: Sequence[Any] = ()
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Row:
    """One laid-out example.

    Attributes:
        index: of the example in its data set.
        counted: False for a filler row, and for a donor.
        inputs: its image tensors by name.
        seed: of what is drawn for it.
        donor: the row whose thoughts it is fed, if it borrows.
        supervision: what the method's loss asks besides.
    """

    input_ids: list[int]
    labels: list[int]
    index: int
    counted: bool = True
    inputs: dict[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    donor: "Row | None" = None
    supervision: Supervision | None = None

    @property
    def branch(self) -> Branch | None:
        return None if self.supervision is None else self.supervision.branch


class Collator:
    """Pads and stacks rows.

    For training the first latent columns are aligned, so that the batch needs as few passes as its longest chain
    of latents; rows without latents go to the left edge. For generation all rows end in the same column. The donors of
    rows that borrow follow them, in the same order, as the second half of the batch. Rows with branches are aligned
    where these begin, and have them in further columns, behind the longest row.

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
        lists; supervision: tensors by name (`supervision_of`), if the rows have any."""
        own = rows
        rows = [*rows, *(row.donor for row in rows if row.donor is not None)]
        left = self._left_padding(rows)
        ends = [pad + len(row.input_ids) for pad, row in zip(left, rows, strict=True)]
        length = max(self.min_length, *ends)
        if self.for_generation:
            left = [length - len(row.input_ids) for row in rows]
        branches = [row.branch for row in own if row.branch is not None]
        fork = Fork(left[0] + branches[0].after, length) if branches else None
        # a branch writes over all that follows the fork
        further = max(length - fork.column, *(len(branch.input_ids) for branch in branches)) if fork else 0
        input_ids = torch.full((len(rows), length + further), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        placed: list[tuple[int, int, Row | Branch]] = [*zip(range(len(rows)), left, rows, strict=True)]
        placed += [(i, length, branch) for i, branch in enumerate(branches)]
        for i, start, tokens in placed:
            here = slice(start, start + len(tokens.input_ids))
            input_ids[i, here] = torch.tensor(tokens.input_ids)
            attention_mask[i, here] = 1
            if rows[i].counted:
                labels[i, here] = torch.tensor(tokens.labels)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "inputs": self.batch_inputs([row.inputs for row in rows]),
            "seeds": torch.tensor([row.seed for row in rows]),
            "index": [row.index for row in rows],
            "counted": [row.counted for row in rows],
            "supervision": supervision_of(own, ends[: len(own)], fork),
        }

    def _left_padding(self, rows: Sequence[Row]) -> list[int]:
        aligned = [self._aligned_column(row) for row in rows]
        furthest = max((column for column in aligned if column is not None), default=0)
        return [0 if column is None else furthest - column for column in aligned]

    def _aligned_column(self, row: Row) -> int | None:
        if row.branch is not None:
            return row.branch.after
        return row.input_ids.index(self.latent_token_id) if self.latent_token_id in row.input_ids else None


def supervision_of(rows: Sequence[Row], ends: Sequence[int], fork: Fork | None) -> dict[str, Any]:
    """What the loss asks of B rows; nothing if they have no supervision.

    Args:
        ends: the column after each row's last token.

    Returns: by name
        stretches: (B, K, S) token ids, filled up with IGNORE_INDEX; K and S are at least 1.
        announced: (B, 1) or, with branches, (B, 2): the last column before the answer, of the row and of its branch.
        counted: (B,) bool, False for filler rows.
        fork: where their branches are, if they have any.
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
    announced = [[end - one.answer - 1] for end, one in zip(ends, asked, strict=True)]
    for columns, one in zip(announced, asked, strict=True):
        if fork is not None and one.branch is not None:
            columns.append(fork.branch + len(one.branch.input_ids) - one.answer - 1)
    return {
        "stretches": stretches,
        "announced": torch.tensor(announced),
        "counted": torch.tensor([row.counted for row in rows]),
        **({} if fork is None else {"fork": fork}),
    }
