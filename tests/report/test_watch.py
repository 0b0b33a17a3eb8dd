import io
import json

from pages import write_training
from rich.console import Console

from multicoco.cli import main
from multicoco.report import story
from multicoco.report.folder import read_run
from multicoco.report.watch import frame, watch


def shown(run, now: float = 1100.0) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(frame(read_run(run, tail=10_000), now))
    return console.file.getvalue()


def test_it_shows_where_the_run_is_and_what_came_last(tmp_path):
    run = write_training(tmp_path / "run", steps=30)
    with (run / "metrics.jsonl").open("a") as file:
        about = {"step": 151, "time": 1151.0, "train/lr": 0.5, "train/skipped_steps": 2}
        print(json.dumps(about | {"thoughts/norm": 2.0, "thoughts/effective_rank": 3.5}), file=file)
    text = shown(run, 1160.0)
    for part in ("finished", "epoch", "of 5, step 151 of 150", "coconut 1.000 at step 150, 10 s ago", "epoch_0005, "):
        assert part in text
    assert "2 steps" in text and "norm 2.00, effective rank 3.5" in text and "9 s ago" in text
    assert "█" in text.split("loss")[1].splitlines()[0] and "▁ 0.006667" in text


def test_the_time_left_is_by_the_pace_of_the_last_entries(tmp_path, monkeypatch):
    run = write_training(tmp_path / "run", steps=30, num_epochs=10)
    monkeypatch.setattr(story, "owner", lambda path: "process 1 on far since today")
    assert "about 2 min, without evaluations" in shown(run)  # 150 steps of a second
    monkeypatch.setattr(story, "owner", lambda path: None)
    assert "time left" not in shown(run)


def test_a_run_that_has_only_begun_or_is_damaged_is_shown(tmp_path):
    (tmp_path / "config.yaml").write_text("{broken")
    assert "none yet" in shown(tmp_path) and "config.yaml cannot be read" in shown(tmp_path).replace("\n", " ")


def test_names_are_no_markup(tmp_path):
    assert "[red]x" in shown(write_training(tmp_path / "[red]x"))


def test_it_looks_again_until_the_run_has_ended(tmp_path, monkeypatch):
    run = write_training(tmp_path / "run")
    owners = iter(["process 1 on far since today"] * 6)
    monkeypatch.setattr(story, "owner", lambda path: next(owners, None))
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    watch(run, 0.01, once=False, console=console)
    assert "running" in console.file.getvalue() and "finished" in console.file.getvalue()


def test_the_command_shows_it_once_where_there_is_no_terminal(tmp_path, capsys):
    run = write_training(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["watch", str(run)]) == 0
    assert "epoch_0005" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert main(["watch", str(tmp_path / "none")]) == 1
    assert "is no run folder" in capsys.readouterr().err
