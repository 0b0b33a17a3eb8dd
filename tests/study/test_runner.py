"""Which runs a study starts, and when; with something that stands for train.py."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from fake_runs import started

from multicoco.cli import main


def test_what_others_need_comes_first_and_what_is_done_is_not_done_again(written, study, capsys):
    file = written()
    assert main(["study", str(file)]) == 0
    order = ["direct", "start", "hidden"]
    expected = [f"{arm}/seed_{seed}/{run}" for seed in (0, 1) for arm in order for run in ("train", "val")]
    assert started() == expected
    text = capsys.readouterr().out
    assert "[12/12] hidden/1 on val, about" in text and "is not shown" in text
    assert main(["study", str(file)]) == 0
    assert started() == []
    study["seeds"] = [0]
    study["arms"]["direct"] = {"set": {"lr": 0.4}}
    assert main(["study", str(written())]) == 0
    assert started() == ["direct/seed_0/train", "direct/seed_0/val"]
    study["arms"]["start"]["set"]["lr"] = 0.35  # and what starts from it
    assert main(["study", str(written())]) == 0
    assert started() == [f"{arm}/seed_0/{run}" for arm in ("start", "hidden") for run in ("train", "val")]


def test_a_failed_arm_ends_only_those_that_need_it(written, study, capsys):
    study["arms"]["start"]["set"]["lr"] = 1.0
    assert main(["study", str(written())]) == 1
    assert [name for name in started() if name.endswith("train")] == [
        f"{arm}/seed_{seed}/train" for seed in (0, 1) for arm in ("direct", "start")
    ]
    said = capsys.readouterr()
    assert "error: 8 runs of the study are missing" in said.err and "error: it is broken" in said.err
    assert {run["arm"] for run in json.loads(Path("studies/tiny/study.json").read_text())["runs"]} == {"direct"}


def test_a_run_that_a_signal_has_stopped_goes_on(written, study, capsys):
    study["arms"]["start"]["set"]["lr"] = 0.5
    assert main(["study", str(written())]) == 1
    assert "start/0 training was stopped by a signal: the same command goes on" in capsys.readouterr().err
    started()
    study["seeds"] = [0]
    assert main(["study", str(written())]) == 0
    assert started()[0] == "start/seed_0/train"


@pytest.mark.parametrize(
    ("launcher", "number"),
    [(sys.executable, signal.SIGINT), (f"sh -c '\"$@\" & wait' sh {sys.executable}", signal.SIGHUP)],
)
def test_a_run_is_told_to_stop_and_waited_for(written, study, capsys, monkeypatch, launcher, number):
    """Also by a launcher that a signal ends alone, as `deepspeed` on one host."""
    monkeypatch.setenv("STUDY", str(os.getpid()))
    monkeypatch.setenv("STUDY_SIGNAL", str(int(number)))
    study["arms"]["direct"] = {"set": {"lr": 0.6}}
    before = signal.signal(number, signal.SIG_DFL)  # `nohup make test` ignores one, `make test &` another
    try:
        assert main(["study", str(written()), "--launcher", launcher]) == 1
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "error: stopped by a signal: the same command goes on from there\n"
    assert started() == ["direct/seed_0/train"] and Path("told.txt").exists()


def test_a_scheduler_can_list_and_do_them_one_by_one(written, capsys):
    file = str(written())
    assert main(["study", file, "--list"]) == 0
    names = capsys.readouterr().out.split()
    assert names == [f"{arm}/{seed}" for seed in (0, 1) for arm in ("direct", "start", "hidden")]
    assert main(["study", file, "--only", "hidden/1"]) == 1
    assert "hidden/1 training: not done, it needs studies/tiny/start-" in capsys.readouterr().err and not started()
    assert main(["study", file, "--only", "start/1"]) == 0 == main(["study", file, "--only", "hidden/1"])
    assert started() == [f"{arm}/seed_1/{run}" for arm in ("start", "hidden") for run in ("train", "val")]
    assert not Path("studies/tiny/study.json").exists()


def test_the_plan_has_all_runs_and_starts_none(written, capsys):
    assert main(["study", str(written()), "--plan"]) == 0
    text = capsys.readouterr().out
    assert "12 of 12 runs to do.\ntraining: known once one is done\nevaluation: known once one is done\n" in text
    [hidden] = [line for line in text.splitlines() if line.startswith("hidden/1 training")]
    assert hidden.split()[:5] == ["hidden/1", "training", "to", "do", str(2 * 10)]
    assert not started() and not Path("studies").exists()


def test_the_launcher_is_put_before_train_py(written, capsys):
    assert main(["study", str(written()), "--only", "direct/0", "--launcher", "echo launched"]) == 0
    [log] = Path("studies/tiny").glob("direct-*/seed_0/train.log")
    assert log.read_text().startswith("launched ") and "fake_train.py" in log.read_text()


def test_a_training_that_ended_while_nobody_looked_is_done(written, study):
    study["seeds"], study["arms"] = [0], {"direct": {}}
    assert main(["study", str(written())]) == 0
    started()
    for path in Path("studies/tiny").glob("direct-*/seed_0/*/done.json"):
        path.unlink()
    assert main(["study", str(written())]) == 0
    assert started() == ["direct/seed_0/val"]


@pytest.mark.parametrize("launcher", ["no_such_command -x", "", "'"])
def test_a_launcher_that_is_none_is_named(written, capsys, launcher):
    assert main(["study", str(written()), "--launcher", launcher]) == 1
    assert capsys.readouterr().err.startswith(f"error: --launcher {launcher}: ") and not started()


def test_a_folder_that_cannot_be_written_is_named(written, capsys):
    Path("studies").write_text("a file")
    assert main(["study", str(written())]) == 1
    assert "direct/0 training cannot be started" in capsys.readouterr().err
