import json
from pathlib import Path

import pytest
from pages import write_training

from multicoco.errors import UserError
from multicoco.report.folder import read_run


def log(run: Path, *lines: dict) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"time": 1.0, **line}) + "\n" for line in lines)


def trained(step: int, loss: float = 1.0) -> dict:
    return {"step": step, "train/loss": loss, "train/lr": 0.1}


def test_steps_that_were_done_again_count_once(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    evaluated = {"step": 30, "eval/cot/accuracy": 0.5}
    log(run, *(trained(step) for step in (10, 20, 30)), evaluated, *(trained(step, 2.0) for step in (20, 30, 40)))
    read = read_run(run)
    assert read.series("train/loss") == ([10, 20, 30, 40], [1.0, 2.0, 2.0, 2.0])
    assert read.series("eval/cot/accuracy") == ([], [])
    assert read.went_back == [(30, 20)]


def test_a_line_in_the_making_is_left_out_and_a_broken_one_is_said(tmp_path):
    run = write_training(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "ti')
    assert read_run(run).problems == []
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    [problem] = read_run(run).problems
    assert "metrics.jsonl: 1 lines are no JSON" in problem


def test_numbers_that_were_not_finite_are_no_part_of_a_series(tmp_path):
    run = write_training(tmp_path / "run", (1,), steps=1)
    log(run, {"step": 2, "train/lr": 0.1, "train/loss": None})
    assert read_run(run).series("train/loss")[0] == [1]


@pytest.mark.parametrize(
    ("config", "place"), [({}, "."), ({"name": "other"}, None), ({"output_dir": "deep/runs"}, None)]
)
def test_paths_of_a_config_are_relative_to_where_the_run_was_started(tmp_path, config, place):
    run = write_training(tmp_path / "runs" / "run", **config)
    assert read_run(run).base == (Path() if place is None else tmp_path / place)


def test_a_folder_without_anything_of_a_run_is_none(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        read_run(tmp_path)
