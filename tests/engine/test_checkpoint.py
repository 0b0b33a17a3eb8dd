import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.engine.checkpoint import Checkpoints, TrainerState, find_weights, latest
from multicoco.errors import UserError


def make_run(run: Path, accuracies: list[float | None]) -> Path:
    """A run folder whose epochs ended with these accuracies."""
    for epoch, accuracy in enumerate(accuracies, start=1):
        folder = run / "checkpoints" / f"epoch_{epoch:04d}"
        folder.mkdir(parents=True)
        (folder / "trainer.json").write_text(json.dumps(asdict(TrainerState(epoch, 0, epoch, accuracy))))
    (run / "checkpoints" / "latest").write_text(f"epoch_{len(accuracies):04d}")
    return run


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("epoch_*")}


@given(
    accuracies=st.lists(st.none() | st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=8),
    keep=st.integers(1, 4),
    keep_best=st.integers(0, 3),
)
def test_the_newest_and_the_best_stay_and_nothing_else(tmp_path_factory, accuracies, keep, keep_best):
    run = make_run(tmp_path_factory.mktemp("run"), accuracies)
    Checkpoints(run, keep, keep_best).prune()
    epochs = range(1, len(accuracies) + 1)
    evaluated = [epoch for epoch in epochs if accuracies[epoch - 1] is not None]
    best = sorted(evaluated, key=lambda epoch: (accuracies[epoch - 1], epoch), reverse=True)[:keep_best]
    assert names(run) == {f"epoch_{epoch:04d}" for epoch in {*epochs[-keep:], *best}}


@pytest.mark.parametrize(
    ("accuracies", "chosen", "why"),
    [([0.1, 0.3, 0.2], 2, "best"), ([0.3, 0.3], 2, "best"), ([None, None], 2, "latest"), ([0.1, None], 1, "best")],
)
def test_a_run_folder_gives_its_best_weights_or_the_latest(tmp_path, accuracies, chosen, why):
    run = make_run(tmp_path, accuracies)
    source, how = find_weights(str(run))
    assert source == str(run / "checkpoints" / f"epoch_{chosen:04d}" / "model")
    assert how.startswith(why)


def test_a_checkpoint_gives_its_own_weights_and_anything_else_is_left_to_transformers(tmp_path):
    run = make_run(tmp_path, [0.9, 0.1])
    checkpoint = run / "checkpoints" / "epoch_0002"
    assert find_weights(str(checkpoint))[0] == str(checkpoint / "model")
    assert find_weights("OpenGVLab/InternVL3-1B-hf")[0] == "OpenGVLab/InternVL3-1B-hf"


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    run = make_run(tmp_path, [0.1])
    (run / "checkpoints" / "epoch_0002.unfinished").mkdir()
    (run / "checkpoints" / "epoch_0002.unfinished" / "trainer.json").write_text("{}")
    assert find_weights(str(run))[0].endswith("epoch_0001/model")


def test_no_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        latest(tmp_path / "checkpoints")
