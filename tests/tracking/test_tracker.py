import json
import logging

import pytest
from tracked import SUMMARY, lines, run_config

from multicoco.config import Wandb
from multicoco.tracking import Tracker
from multicoco.tracking.tensorboard import TensorBoard


def test_an_evaluation_leaves_summary_samples_and_metrics(tmp_path):
    tracker = Tracker(tmp_path, run_config())
    samples = [{"id": "1", "generated": "Zürich\n"}, {"id": "2", "generated": ""}]
    tracker.log_evaluation("epoch_0001", "cot", SUMMARY, samples, 7, list)
    assert lines(tmp_path / "samples" / "epoch_0001_cot.jsonl") == samples
    assert json.loads((tmp_path / "evaluation" / "cot.json").read_text()) == SUMMARY
    [line] = lines(tmp_path / "metrics.jsonl")
    assert line["eval/cot/accuracy"] == 0.5 and line["step"] == 7


def test_official_scores_are_logged_and_shown_and_predictions_written(tmp_path, capsys):
    for enabled in (False, True):
        tracker = Tracker(tmp_path, run_config(), enabled=enabled)
        scores = {"aokvqa/multiple_choice": 0.25, "aokvqa/multiple_choice_n": 8}
        tracker.log_evaluation("final", "cot", SUMMARY | scores, [], 7, list)
        tracker.write_predictions("final", "cot", "aokvqa", {"q": {"multiple_choice": "ü"}})
        assert (tmp_path / "predictions").exists() == enabled
    predictions = json.loads((tmp_path / "predictions" / "final_cot.aokvqa.json").read_text())
    assert predictions == {"q": {"multiple_choice": "ü"}}
    assert lines(tmp_path / "metrics.jsonl")[-1]["eval/cot/aokvqa/multiple_choice"] == 0.25
    assert "official: aokvqa/multiple_choice 0.250\n" in capsys.readouterr().out


def test_the_progress_bar_shows_on_rank_0_alone(tmp_path, capsys):
    for enabled in (False, True):
        with Tracker(tmp_path, run_config(), enabled=enabled).progress(3, "training") as progress:
            progress.update(3)
        assert ("training" in capsys.readouterr().err) is enabled


def test_other_ranks_write_nothing(tmp_path):
    tracker = Tracker(tmp_path / "run", run_config(wandb=Wandb(mode="online")), enabled=False)
    tracker.log({"a": 1}, step=1)
    tracker.log_evaluation("e", "cot", SUMMARY, [], 1, list)
    tracker.log_thoughts("e", "cot", b"seen")
    with tracker.progress(3, "x") as progress:
        progress.update()
    tracker.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["start", "log", "log_evaluation", "close"])
def test_a_sink_that_fails_is_said_once_and_left_alone(tmp_path, caplog, monkeypatch, where):
    def fail(*arguments):
        raise RuntimeError("it broke")

    monkeypatch.setattr(TensorBoard, "__init__" if where == "start" else where, fail)
    tracker = Tracker(tmp_path, run_config(tracking=["tensorboard"]))
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            tracker.log({"a": 1}, step=step)
            tracker.log_evaluation("final", "cot", SUMMARY, [], step, list)
        tracker.close()
    assert caplog.text.count("it broke") == caplog.text.count("TensorBoard: could not") == 1
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 1, 2, 2]
