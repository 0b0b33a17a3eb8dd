import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tracked import lines, run_config

import multicoco
from multicoco.tracking import Tracker, environment

TORCHRUN = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}


def test_environment_names_versions_and_revision(tmp_path):
    Tracker(tmp_path, run_config())
    saved = json.loads((tmp_path / "environment.json").read_text())
    assert saved["torch"] == version("torch")
    assert saved["python"] == ".".join(map(str, sys.version_info[:3]))
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (saved["git"] or {}).get("commit", "") == head.stdout.strip()
    assert saved["multicoco"] == multicoco.__version__
    assert environment()["command"] and saved["cpu"] and saved["cores"] == os.cpu_count()


@pytest.mark.parametrize(
    ("variables", "arguments", "launcher"),
    [
        ({}, [], "python"),
        (TORCHRUN, [], "torchrun --nnodes 2 --nproc_per_node 2"),
        ({"WORLD_SIZE": "2", "LOCAL_SIZE": "2"}, ["--local_rank=0"], "deepspeed --num_gpus 2"),
        ({"WORLD_SIZE": "4", "LOCAL_SIZE": "2"}, ["--local_rank=0"], "deepspeed --hostfile HOSTFILE"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "WORLD_SIZE": "2"}, [], "mpirun -n 2 python"),
        ({"WORLD_SIZE": "2"}, [], "LAUNCHER"),
    ],
)
def test_the_launcher_is_told_by_its_traces(monkeypatch, variables, arguments, launcher):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    assert environment()["launcher"] == launcher


def test_every_start_is_kept_with_its_machine(tmp_path):
    for _ in range(2):
        Tracker(tmp_path, run_config()).close()
    starts = lines(tmp_path / "starts.jsonl")
    assert len(starts) == 2 and all(start["cores"] for start in starts)
    assert starts[1] == json.loads((tmp_path / "environment.json").read_text())


def test_the_revision_is_that_of_the_source_and_tells_changes(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    source = tmp_path / "tracking.py"
    monkeypatch.setattr("multicoco.tracking.machine.__file__", str(source))
    source.write_text("")
    assert environment()["git"] is None  # no repository
    git("init")
    git("commit", "--allow-empty", "-m", "x")
    assert environment()["git"] is None  # one that does not hold the source
    git("add", source.name)
    git("commit", "-m", "x")
    assert environment()["git"]["dirty"] is False
    source.write_text("changed")
    assert environment()["git"]["dirty"] is True
