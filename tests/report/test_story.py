import json

from pages import write_answers, write_training

from multicoco.report import story
from multicoco.report.folder import read_run


def test_a_training_is_told_with_its_data_start_steps_and_stages(tmp_path):
    run = read_run(write_training(tmp_path / "run", load_model_path="runs/cot"))
    told = story.trained(run)
    for part in ("method coconut", "train.json", "runs/cot", "5 epochs of 5", "25 optimizer steps", "stages 1, 2"):
        assert part in told
    assert "git aaaaaaaaaaaa with changes" in story.made_by(run)
    assert story.time_taken(run) == 300 and story.wrong(run) == [] and story.state_of(run) == "finished"


def test_an_evaluation_is_told_with_its_checkpoint_interval_and_what_was_unclear(tmp_path):
    run = write_answers(tmp_path / "run", "cot", [True, True, None])
    (run / "config.yaml").write_text("{mode: eval_only, val_path: val.json}")
    path = run / "evaluation" / "cot.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint": "runs/x (stage 2)", "stage": 2}))
    read = read_run(run)
    assert story.trained(read) == "An evaluation of runs/x (stage 2) on val.json."
    [told] = story.results(read)
    assert "accuracy 0.667 (95% interval 0.208 to 0.939, n = 3; guessing gives 0.500), at stage 2" in told
    assert "1 unparsed and 1 cut off" in told
    assert story.state_of(read) == "evaluated"


def test_what_went_wrong_is_told(tmp_path):
    run = write_training(tmp_path / "run", (1,))
    starts = [{"started": "monday", "torch": "1"}, {"started": "tuesday", "torch": "2"}]
    (run / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    (run / "config.1.yaml").touch()
    (run / "checkpoints" / "epoch_0000.damaged").mkdir()
    skipped = {"train/lr": 0.1, "train/skipped_steps": 3, "time": 0.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(skipped | {"step": step}) + "\n" for step in (4, 5))
        print(json.dumps({"step": 0, "time": 0.0, "data/examples": 90, "data/too_long": 10}), file=file)
    told = " ".join(story.wrong(read_run(run)))
    for part in (
        "10 examples were too long and left out, 90 were trained on",
        "3 steps were skipped",
        "2 log entries have no finite loss",
        "started 2 times",
        "tuesday",
    ):
        assert part in told
    for part in ("same torch", "before step 4 after step 5", "config.1.yaml", "epoch_0000.damaged"):
        assert part in told


def test_a_run_that_ended_before_its_last_epoch_is_stopped(tmp_path):
    assert story.state_of(read_run(write_training(tmp_path / "run", num_epochs=9))) == "stopped"
