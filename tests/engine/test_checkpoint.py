import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from homes import flip_a_bit, make_run, seal_whole
from hypothesis import given
from hypothesis import strategies as st

from multicoco.engine.checkpoint import Checkpoints
from multicoco.engine.manifest import MANIFEST, damage, describe, seal
from multicoco.engine.trainer_state import TrainerState, all_checkpoints, read_state
from multicoco.errors import UserError


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
    best = sorted(evaluated, key=lambda epoch: (accuracies[epoch - 1], epoch), reverse=True)[: max(1, keep_best)]
    assert names(run) == {f"epoch_{epoch:04d}" for epoch in {*epochs[-keep:], *best}}


def within_an_epoch(run: Path, epoch: int, step: int) -> Path:
    folder = run / "checkpoints" / TrainerState(epoch, 0, step, epoch_step=1).name
    folder.mkdir(parents=True)
    (folder / "trainer.json").write_text(json.dumps(asdict(TrainerState(epoch, 0, step, epoch_step=1))))
    seal_whole(folder)
    return folder


def test_the_newest_is_the_one_with_most_epochs_and_then_steps(tmp_path):
    run = make_run(tmp_path, [0.1] * 10)
    checkpoints = Checkpoints(run, keep=3, keep_best=1)
    assert checkpoints.newest_whole().name == "epoch_0010"
    newest = [within_an_epoch(run, 10, step) for step in (9, 120)][-1]
    assert checkpoints.newest_whole() == newest
    checkpoints.prune()
    assert names(run) == {"epoch_0010", "epoch_0010_step_00000009", "epoch_0010_step_00000120"}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: flip_a_bit(path / "model" / "model.safetensors"), "model.safetensors: changed since"),
        (lambda path: (path / "model" / "model.safetensors").write_bytes(b"ab"), "2 bytes, not 1000"),
        (lambda path: (path / "model" / "model.safetensors").unlink(), "model.safetensors: missing"),
        (lambda path: (path / "trainer.json").write_text("{"), "trainer.json: 1 bytes"),
        (lambda path: (path / MANIFEST).unlink(), MANIFEST),
        (lambda path: (path / MANIFEST).write_text("[]"), MANIFEST),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, capsys, harm, message):
    run = make_run(tmp_path, [0.1, 0.2, 0.3])
    harm(run / "checkpoints" / "epoch_0003")
    assert Checkpoints(run, 3, 1).newest_whole().name == "epoch_0002"
    said = capsys.readouterr().out
    assert "epoch_0003 is damaged" in said and message in said
    assert names(run) == {"epoch_0001", "epoch_0002", "epoch_0003.damaged"}  # kept, but counted no more


@pytest.mark.parametrize(("world_size", "zero_stage"), [(2, 2), (1, 3)])
def test_rates_by_part_are_not_converted_for_other_ranks_or_stages(tmp_path, world_size, zero_stage):
    groups = [{"params": [torch.zeros(1)], "part": part} for part in ("language_model", "projector")]
    engine = SimpleNamespace(optimizer=torch.optim.AdamW(groups), zero_optimization_stage=lambda: 2)
    state = TrainerState(1, 0, 1, world_size=world_size, zero_stage=zero_stage)
    with pytest.raises(UserError, match=rf"is of {world_size} ranks and ZeRO stage {zero_stage}: with a learning rate"):
        Checkpoints(tmp_path, 1, 1).load(engine, tmp_path / "epoch_0001", state)


def test_when_all_are_damaged_nothing_is_trained_over_them(tmp_path):
    run = make_run(tmp_path, [0.1, 0.2])
    for epoch in (1, 2):
        flip_a_bit(run / "checkpoints" / f"epoch_000{epoch}" / "model" / "model.safetensors")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        Checkpoints(run, 3, 1).newest_whole()
    assert Checkpoints(tmp_path / "none", 3, 1).newest_whole() is None


def test_a_manifest_covers_every_file(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    files = [tmp_path / "x", tmp_path / "a" / "y", tmp_path / "a" / "b" / "z"]
    for path in files:
        path.write_text(path.name)
    seal_whole(tmp_path)
    assert damage(tmp_path) == []
    for path in files:
        path.write_text("?")
        assert damage(tmp_path) == [f"{path.name}: changed since it was written (SHA-256)"]
        path.write_text(path.name)


def test_files_that_rank_0_cannot_see_are_no_checkpoint(tmp_path):
    (tmp_path / "here").write_text("x")
    here = describe(tmp_path, [tmp_path / "here"])
    for elsewhere in ({"there": here["here"]}, {"here": here["here"] | {"bytes": 2}}):
        with pytest.raises(OSError, match="all hosts must share the folder"):
            seal(tmp_path, here | elsewhere)
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize("crash_at", ["rename", "rmtree"])
def test_a_crash_while_pruning_leaves_whole_checkpoints(tmp_path, monkeypatch, crash_at):
    run, calls = make_run(tmp_path, [None] * 5), []

    def crash(*args, **kwargs):
        calls.append(args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil if crash_at == "rmtree" else Path, crash_at, crash)
        Checkpoints(run, keep=1, keep_best=0).prune()
    assert calls and Checkpoints(run, 1, 0).newest_whole().name == "epoch_0005"
    assert all(damage(path) == [] for path in all_checkpoints(run / "checkpoints"))
    Checkpoints(run, keep=1, keep_best=0).prune()
    assert names(run) == {"epoch_0005"}


def test_what_a_killed_writer_has_left_is_in_no_saves_way(tmp_path):
    run = make_run(tmp_path, [0.1, 0.2])
    for folder in (run / "checkpoints", run / "checkpoints" / "epoch_0001"):
        (folder / ".0123.unfinished").write_text("half")
    (run / "checkpoints" / "epoch_0003.unfinished" / "model").mkdir(parents=True)
    Checkpoints(run, keep=3, keep_best=1).remove_leftovers()
    assert not [*run.rglob("*.unfinished")] and names(run) == {"epoch_0001", "epoch_0002"}


def test_an_evaluation_is_added_to_a_whole_checkpoint(tmp_path):
    run = make_run(tmp_path, [0.1, None])
    Checkpoints(run, keep=3, keep_best=1).note_evaluation("epoch_0002", 0.5, 0.5, keep=True)
    path = run / "checkpoints" / "epoch_0002"
    state = read_state(path)
    assert (state.accuracy, state.best_accuracy, state.evaluated) == (0.5, 0.5, True)
    assert damage(path) == []


def test_an_evaluation_may_take_its_checkpoint_away_again(tmp_path):
    run = make_run(tmp_path, [0.1, None])
    Checkpoints(run, keep=3, keep_best=1).note_evaluation("epoch_0002", 0.0, 0.1, keep=False)
    assert names(run) == {"epoch_0001"} and (run / "checkpoints" / "latest").read_text() == "epoch_0001"
