import json

from pages import write_answers, write_training

from multicoco.cli import main
from multicoco.report.listing import find_runs, list_run


def test_runs_are_found_at_any_depth_with_state_step_and_accuracy(tmp_path, capsys):
    write_training(tmp_path / "a" / "done")
    stopped = write_training(tmp_path / "a" / "b" / "half", num_epochs=9, val_path=None)
    environment = {"command": "train.py --local_rank=0 'my run.yaml'", "launcher": "deepspeed --num_gpus 2"}
    (stopped / "starts.jsonl").write_text(json.dumps(environment) + "\n")
    evaluated = write_answers(tmp_path / "c", "cot", [True, False])
    (evaluated / "config.yaml").write_text("mode: eval_only")
    (tmp_path / "none").mkdir()
    assert [path.name for path in find_runs(tmp_path)] == ["half", "done", "c"]
    assert main(["runs", str(tmp_path)]) == 0
    table = capsys.readouterr().out.splitlines()
    rows = {line.split()[0].rsplit("/", 1)[-1]: line for line in table[1:4]}
    assert all(part in rows["done"] for part in ("finished", " 2 ", "5 of 5", "25", "1.000", " ago"))
    assert all(part in rows["half"] for part in ("stopped", "5 of 9"))
    assert all(part in rows["c"] for part in ("evaluated", "0.500"))
    assert table[-1].endswith("half: deepspeed --num_gpus 2 train.py 'my run.yaml'") and len(table) == 7


def test_a_name_that_would_break_the_table_does_not(tmp_path, capsys):
    write_training(tmp_path / "a\nb\x1b[31m")
    assert main(["runs", str(tmp_path)]) == 0
    assert "a?b?[31m" in capsys.readouterr().out.splitlines()[1]


def test_the_best_accuracy_is_of_the_last_stage(tmp_path):
    run = write_training(tmp_path / "run")
    (run / "checkpoints" / "epoch_0001").mkdir()
    state = {"epoch": 1, "stage": 1, "step": 5, "accuracy": 1.0}
    (run / "checkpoints" / "epoch_0001" / "trainer.json").write_text(json.dumps(state))
    newest = run / "checkpoints" / "epoch_0005" / "trainer.json"
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"accuracy": 0.25}))
    assert list_run(run).best == 0.25


def test_folders_without_runs_are_named(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 1
    assert main(["runs", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert f"no run in {tmp_path}" in said and "none is no folder" in said
