"""What goes wrong around a run: the disk, its files, another run, its data and config."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from homes import seal_whole

from multicoco.engine.manifest import MANIFEST, damage
from multicoco.engine.trainer_state import EVALUATION, all_checkpoints

pytestmark = pytest.mark.distributed


def errors(said: list[str]) -> list[str]:
    """The messages of all ranks together."""
    assert not any("Traceback" in text for text in said), said
    return [line for text in said for line in text.splitlines() if line.startswith("error")]


@pytest.fixture
def small_disk(runs):
    """A folder with room for one checkpoint, not for two."""
    folder = runs.home / "small"
    folder.mkdir()
    one = sum(p.stat().st_size for p in (finished(runs) / "checkpoints" / "epoch_0001").rglob("*"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(1.6 * one)}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def finished(runs) -> Path:
    """A run that has come to its end: two epochs."""
    run = runs.home / "runs" / "finished"
    if not run.exists():
        codes, said = runs("finished")
        assert codes == [0], said
    return run


def copy_of_finished(runs, name: str) -> Path:
    return shutil.copytree(
        finished(runs), runs.home / "runs" / name, ignore=shutil.ignore_patterns("epoch_0002", ".lock")
    )


@pytest.mark.parametrize(
    ("then", "ranks", "asynchronous"),
    [("stop", 1, "true"), ("stop", 2, "false"), ("continue", 1, "false"), ("continue", 2, "true")],
)
def test_a_full_disk_leaves_the_checkpoint_before_it_and_no_half_one(runs, small_disk, then, ranks, asynchronous):
    settings = (
        f"output_dir={small_disk}",
        f"on_save_error={then}",
        f"asynchronous_save={asynchronous}",
        "batch_size=1",
        "gradient_accumulation_steps=4",
    )
    codes, _ = runs("full", *settings, ranks=ranks)
    [message] = errors(runs.said)
    assert "epoch_0002 could not be written" in message and "the ones before it are untouched" in message
    assert codes == [0 if then == "continue" else 1] * ranks
    checkpoints = small_disk / "full" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"epoch_0001", "latest"}
    assert damage(checkpoints / "epoch_0001") == [] and (checkpoints / "latest").read_text() == "epoch_0001"


def test_the_manifest_names_every_file(runs):
    folder = finished(runs) / "checkpoints" / "epoch_0002"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*json.loads((folder / MANIFEST).read_text())["files"], MANIFEST, EVALUATION}
    assert len(files) > 10 and damage(folder) == []


@pytest.mark.parametrize("file", ["deepspeed/state/*optim_states.pt", "trainer.json"])
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(runs, file):
    run = shutil.copytree(finished(runs), runs.home / "runs" / f"damaged_{file[:7]}")
    cut = next(run.glob(f"checkpoints/epoch_0002/{file}"))
    cut.write_bytes(cut.read_bytes()[:-100])
    codes, said = runs(run.name)
    assert codes == [0], said
    assert f"epoch_0002 is damaged and put aside: {cut.name}" in said and "epoch_0001" in said
    for name in ("model", "trainer.json"):  # trained once more, from there
        assert (run / "checkpoints" / "epoch_0002" / name).exists()
    weights = [r / "checkpoints" / "epoch_0002" / "model" / "model.safetensors" for r in (run, finished(runs))]
    assert weights[0].read_bytes() == weights[1].read_bytes()


class Burglar:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_code_in_a_checkpoint_is_refused_even_with_a_manifest_to_match(runs):
    run = copy_of_finished(runs, "burgled")
    folder = run / "checkpoints" / "epoch_0001"
    states = next(folder.glob("deepspeed/state/*model_states.pt"))
    content = torch.load(states, weights_only=False)
    torch.save(content | {"extra": Burglar(runs.home / "burgled")}, states)
    (folder / MANIFEST).unlink()
    seal_whole(folder)
    codes, _ = runs("burgled", ranks=1)
    assert codes == [1] and not (runs.home / "burgled").exists()
    [message] = errors(runs.said)
    assert str(states) in message and "mkdir" in message and "no plain data" in message


def test_two_runs_cannot_share_a_folder(runs):
    run = copy_of_finished(runs, "shared")
    holder = subprocess.Popen(
        ["flock", "--exclusive", str(run / ".lock"), "-c", f"echo process 1 on elsewhere > {run}/.lock; sleep 60"],
        start_new_session=True,
    )
    try:
        while not (run / ".lock").exists() or "elsewhere" not in (run / ".lock").read_text():
            assert holder.poll() is None
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        codes, _ = runs("shared", ranks=2)
        assert codes == [1, 1]
        [message] = errors(runs.said)
        assert f"run folder {run} is in use by process 1 on elsewhere" in message
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
    codes, said = runs("shared")
    assert codes == [0], said


def test_changed_data_and_mathematics_are_refused_and_the_rest_applies(runs):
    run = copy_of_finished(runs, "changed")
    before = (run / "checkpoints" / "latest").read_text()
    data = runs.home / "scenes" / "aokvqa_v1p0_train.json"
    original = data.read_text()
    records = json.loads(original)
    records[0]["rationales"] = records[0]["rationales"][::-1]
    data.write_text(json.dumps(records))
    try:
        codes, _ = runs("changed", "lr=2e-3", "coconut.uniform_prob=0", "log_every_steps=2", ranks=1)
    finally:
        data.write_text(original)
    assert codes == [1] and len(errors(runs.said)) == 1
    for line in (
        "lr: 0.001 -> 0.002",
        "coconut.uniform_prob: 0.3 -> 0.0",
        "train_path: same name, but the file has changed",
        "--allow-change KEY",
    ):
        assert line in runs.said[0]
    codes, said = runs("changed", "batch_size=4", ranks=1)
    assert codes == [1] and "batch_size: 4 -> 8 examples in a global batch" in said
    assert "log_every_steps" not in said and (run / "checkpoints" / "latest").read_text() == before
    codes, said = runs("changed", "lr=2e-3", "max_checkpoints_to_keep=1", allow_change=("lr",))
    assert codes == [0] and "  changed: lr: 0.001 -> 0.002" in said and "max_checkpoints_to_keep: 3 -> 1" in said
    best = {path.name for path in all_checkpoints(run / "checkpoints")}
    assert "epoch_0002" in best and len(best) <= 2


def test_a_vanished_run_folder_is_named(runs):
    run = runs.home / "runs" / "vanished"
    finished(runs)
    # a folder that is in the way of the checkpoints stands for a share that is gone or read-only
    run.mkdir(parents=True)
    (run / "checkpoints").write_text("in the way")
    codes, _ = runs("vanished", ranks=2)
    assert codes == [1, 1]
    [message] = errors(runs.said)
    assert "could not be written" in message and str(run) in message
