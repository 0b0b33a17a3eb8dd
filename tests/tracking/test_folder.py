"""Through a tracker."""

import logging
import os
from pathlib import Path

import pytest
from tracked import SUMMARY, lines, run_config

from multicoco.config import load_config
from multicoco.errors import UserError
from multicoco.files import ABANDONED_SECONDS
from multicoco.tracking import Tracker


def test_metrics_lines_carry_step_and_time_and_are_there_at_once(tmp_path):
    tracker = Tracker(tmp_path, run_config())
    tracker.log({"train/loss": 1.5, "train/lr": float("nan"), "stage": 1}, step=3)
    [line] = lines(tmp_path / "metrics.jsonl")
    assert line.pop("time") > 1.7e9
    assert line == {"step": 3, "train/loss": 1.5, "train/lr": None, "stage": 1}


def test_a_second_start_appends_and_keeps_an_earlier_config(tmp_path):
    for lr in (1.0, 2.0, 2.0):
        tracker = Tracker(tmp_path, run_config(lr=lr))
        tracker.log({"a": 1}, step=1)
        tracker.close()
    assert len(lines(tmp_path / "metrics.jsonl")) == 3
    assert load_config(tmp_path / "config.yaml").lr == 2.0
    assert load_config(tmp_path / "config.1.yaml").lr == 1.0
    assert not (tmp_path / "config.2.yaml").exists()


def test_what_a_killed_writer_has_left_is_removed_at_the_next_start_and_what_is_being_written_is_not(tmp_path):
    Tracker(tmp_path, run_config()).log_evaluation("final", "cot", SUMMARY, [], 1, list)
    folders = [tmp_path, tmp_path / "samples", tmp_path / "evaluation"]
    for folder in folders:
        for name, age in (("left", 2 * ABANDONED_SECONDS), ("writing", 0)):
            (path := folder / f".{name}.unfinished").touch()
            os.utime(path, 2 * (path.stat().st_mtime - age,))
    Tracker(tmp_path, run_config())
    assert sorted(tmp_path.rglob("*.unfinished")) == sorted(folder / ".writing.unfinished" for folder in folders)


def test_thoughts_are_whole_and_belong_to_the_samples_of_their_name(tmp_path, monkeypatch, caplog):
    tracker, path = Tracker(tmp_path, run_config()), tmp_path / "thoughts" / "final_cot.safetensors"
    tracker.log_evaluation("final", "cot", SUMMARY, [], 1, list)
    tracker.log_thoughts("final", "cot", b"seen")
    assert path.read_bytes() == b"seen" and [*path.parent.iterdir()] == [path]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        tracker.log_thoughts("final", "cot", b"half of")
    assert path.read_bytes() == b"seen" and "thoughts of" in caplog.text and "No space left" in caplog.text
    tracker.log_evaluation("final", "cot", SUMMARY, [], 2, list)
    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file/run cannot be written"):
        Tracker(tmp_path / "file" / "run", run_config())


def test_a_full_disk_costs_lines_but_not_the_run_and_is_said_once(tmp_path, caplog):
    tracker = Tracker(tmp_path, run_config())
    whole = tracker.folder.metrics_file
    tracker.folder.metrics_file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            tracker.log({"a": 1}, step=step)
    assert caplog.text.count("metrics.jsonl") == 1 and "No space left" in caplog.text
    full, tracker.folder.metrics_file = tracker.folder.metrics_file, whole
    tracker.log({"a": 1}, step=3)
    tracker.folder.metrics_file = full
    tracker.close()
    assert caplog.text.count("No space left") == 2  # there was room in between
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [3]
