"""A run on a stream: bit for bit the same however it is interrupted, the same on any number of ranks."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from homes import make_home
from runs import entries, losses, signalled_at

from multicoco.engine.trainer_state import read_state

pytestmark = pytest.mark.distributed
CONFIG = """mode: train
method: icot
icot: {remove_per_epoch: 2, remove_all_beyond: 3}
num_epochs: 2
streaming: true
stream_lanes: 2
shuffle_buffer: 6
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """14 records in three files, one of which has a bad record, and one a broken image."""
    home = make_home(tmp_path_factory.mktemp("stream"), 14, 1, CONFIG)
    (home / "run.yaml").write_text((home / "run.yaml").read_text().replace("aokvqa_v1p0_val.json", "null"))
    records = json.loads((home / "scenes" / "aokvqa_v1p0_train.json").read_text())
    records[7]["choices"] = ["one"]
    image = home / "scenes" / f"{records[3]['split']}2017" / f"{records[3]['image_id']:012d}.png"
    (home / "scenes" / "train2017" / "broken.png").write_bytes(image.read_bytes()[:100])
    records[3]["image"] = "train2017/broken.png"
    for place, some in enumerate((records[:6], records[6:7], records[7:])):
        lines = [json.dumps(record) + "\n" for record in some]
        (home / "scenes" / f"part-{place}.jsonl").write_text("".join(lines))
    return home


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "epoch_0002" / "model" / "model.safetensors").read_bytes()


def run(
    home: Path, server, name: str, *settings: str, ranks: int = 1, code: int = 0, patch: str = "", workers: int = 0
) -> str:
    keys = ("train_path=part-*.jsonl", f"batch_size={4 // ranks}", f"name={name}", f"num_workers={workers}")
    ended = server.run(home / "run.yaml", *keys, "on_bad_record=skip", *settings, ranks=ranks, patch=patch)
    assert ended.codes == [code] * ranks, ended.said
    return "".join(ended.said)


def test_it_is_the_same_run_on_any_number_of_ranks_and_after_any_interruption(home, run_server):
    said = run(home, run_server, "alone", workers=1)
    assert "14 records in 3 pieces of 3 files" in said and "part-1.jsonl" not in said
    assert "part-0.jsonl: record 3 " in said and "part-2.jsonl: record 0 " in said
    run(home, run_server, "two", ranks=2)
    alone, two = (losses(home / "runs" / name) for name in ("alone", "two"))
    assert len(alone) == 8 and two == pytest.approx(alone, rel=1e-4)
    states = [read_state(home / "runs" / name / "checkpoints" / "epoch_0002") for name in ("alone", "two")]
    assert states[0].tokens == states[1].tokens
    run(home, run_server, "same", ranks=2, code=143, patch=signalled_at(3))
    shutil.copytree(home / "runs" / "same", home / "runs" / "other")
    killed = signalled_at(3, "SIGKILL")  # of which no checkpoint knows
    run(home, run_server, "same", "save_every_steps=1", ranks=2, code=-signal.SIGKILL, patch=killed)
    for name, ranks in (("same", 2), ("other", 1)):
        assert "going on from" in run(home, run_server, name, ranks=ranks)
    of_steps = [entry for entry in entries(home / "runs" / "same") if "train/loss" in entry]
    assert {(entry["step"], entry["train/loss"]) for entry in of_steps} == {*enumerate(two, start=1)}
    assert losses(home / "runs" / "other") == pytest.approx(two, rel=1e-4)
    assert weights(home / "runs" / "same") == weights(home / "runs" / "two")


def test_a_bad_record_ends_it_by_its_name_and_changed_files_are_another_run(home, run_server):
    keys = ("train_path=part-2.jsonl", "batch_size=2", "name=bad", "on_bad_record=skip")
    ended = run_server.run(home / "run.yaml", *keys)
    assert ended.codes == [0], ended.said
    ended = run_server.run(home / "run.yaml", "train_path=part-*.jsonl", "name=bad2")
    assert ended.codes == [1]
    [error] = ended.errors
    assert "part-*.jsonl: 2 bad of 14 records" in error
    late = "from multicoco.engine import streaming\nstreaming.SEEN = 2\n"
    ended = run_server.run(home / "run.yaml", "train_path=part-*.jsonl", "name=bad3", ranks=2, patch=late)
    assert 0 not in ended.codes and any("part-" in error and ": record " in error for error in ended.errors)
    with (home / "scenes" / "part-2.jsonl").open("a") as file:
        file.write(json.dumps({"id": "new", "question": "q", "answer": "a"}) + "\n")
    ended = run_server.run(home / "run.yaml", *keys, "num_epochs=3", allow_change=("num_epochs",))
    assert ended.codes == [1] and "train_path: same name, but the file has changed" in ended.said[0]
