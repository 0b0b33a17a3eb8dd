from types import SimpleNamespace

import pytest
import torch

from multicoco.errors import UserError
from multicoco.training.position import Position
from multicoco.training.skip_limit import SkipLimit


def test_only_steps_in_a_row_count():
    limit = SkipLimit(3, batches=None)
    assert [limit.add(skipped) for skipped in (1, 1, 0, 1, 1, 1)] == [False] * 5 + [True]


def test_giving_up_names_step_stage_and_examples():
    limit = SkipLimit(1, SimpleNamespace(ids=lambda batch: batch["ids"]))
    limit.add(True)
    batches = [{"ids": ["q1", "q2"]}, {"ids": ["q3"]}]
    with pytest.raises(UserError) as error:
        limit.give_up(batches, torch.tensor([1.0, float("nan")]), Position(step=7, stage=2))
    said = str(error.value)
    assert said.startswith("step 7 (stage 2) is number 1 in a row that was skipped") and error.value.on_all_ranks
    assert "rank 0: loss of q1, q2\n" in said and "rank 0: LOSS NOT FINITE of q3\n" in said
