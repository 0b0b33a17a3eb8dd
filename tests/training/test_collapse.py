"""When a stage has collapsed, and where the run could go on from."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from multicoco.engine.checkpoint import Checkpoints
from multicoco.engine.trainer_state import TrainerState
from multicoco.errors import UserError
from multicoco.training.collapse import stop_if_collapsed
from multicoco.training.position import Position

ACCURACIES = [(0, 0.6), (0, 0.9), (1, 0.3), (1, 0.8), (1, 0.5), (1, 0.44)]  # by epoch: stage and accuracy


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    for epoch, (stage, accuracy) in enumerate(ACCURACIES, start=1):
        folder = tmp_path / "checkpoints" / f"epoch_{epoch:04d}"
        folder.mkdir(parents=True)
        (folder / "trainer.json").write_text(json.dumps(asdict(TrainerState(epoch, stage, epoch, accuracy=accuracy))))
    return Checkpoints(tmp_path, keep=1, keep_best=1, keep_stage_before=True)


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


@pytest.mark.parametrize(
    ("accuracy", "is_over", "of", "last_good"),
    [
        (0.41, True, None, None),
        (0.39, False, "0.5 of 0.800, the best of this stage", "epoch_0006 "),
        (0.41, False, None, None),
        (0.43, True, "0.5 of 0.900, the best of the stage before", "epoch_0005 "),
    ],
)
def test_a_stage_is_measured_by_its_own_best_and_at_its_end_by_the_one_before(
    checkpoints, accuracy, is_over, of, last_good
):
    earlier = 0.8 if of is None else 0.9
    at = Position(epoch=7, stage=1, best_accuracy=0.8, earlier_best=earlier)
    if of is None:
        stop_if_collapsed(0.5, accuracy, at, is_over, checkpoints)
        return
    with pytest.raises(UserError) as error:
        stop_if_collapsed(0.5, accuracy, at, is_over, checkpoints)
    message = str(error.value)
    assert f"stage 1 has collapsed: accuracy is {accuracy:.3f} after epoch 7, less than {of}." in message
    assert last_good in message and "coconut.first_stage=1" in message


def test_a_stage_without_an_evaluation_before_has_nothing_to_fall_from(checkpoints):
    stop_if_collapsed(1.0, 0.0, Position(epoch=7, stage=1), True, checkpoints)


def test_the_best_of_the_stage_before_stays_as_long_as_it_may_be_wanted(checkpoints):
    checkpoints.prune()
    assert names(checkpoints.root) == {"epoch_0002", "epoch_0004", "epoch_0006"}
    checkpoints.keep_stage_before = False
    checkpoints.prune()
    assert names(checkpoints.root) == {"epoch_0004", "epoch_0006"}
    at = Position(epoch=7, stage=1, best_accuracy=5.0)
    with pytest.raises(UserError, match="none of its good checkpoints is left"):
        stop_if_collapsed(0.5, 0.1, at, False, checkpoints)
