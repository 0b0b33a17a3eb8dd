import json

import pytest

from multicoco.cli import main
from multicoco.errors import UserError
from multicoco.evaluation.report import format_table, write_summary

ROW = {"n": 500, "ci95": [0.2, 0.3], "mean_new_tokens": 2.0, "mean_latent_passes": 0.0, "seconds": 1.5, "chance": 0.25}


@pytest.fixture
def runs(tmp_path):
    for i, mode in enumerate(("vanilla", "cot", "coconut")):
        run = tmp_path / mode
        (run / "evaluation").mkdir(parents=True)
        summary = ROW | {"accuracy": 0.25 * (i + 1), "mode": mode, "n_unparsed": 0}
        (run / "evaluation" / f"{mode}.json").write_text(json.dumps(summary))
        epochs = [{"train/epoch_seconds": 60.0, "step": 1}, {"train/loss": 1.0}, {"train/epoch_seconds": 30.0}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs))
    return tmp_path


def test_command_writes_the_summary_and_prints_a_table(runs, capsys):
    modes = [f"--{mode}={runs / mode}" for mode in ("vanilla", "cot", "coconut")]
    out = runs / "new" / "summary.json"
    assert main(["summarize", *modes, "--trained", str(runs / "vanilla"), str(runs / "cot"), "--out", str(out)]) == 0
    summary = json.loads(out.read_text())
    assert summary["chance"] == 0.25 and summary["train_seconds"] == 180.0
    assert list(summary["modes"]) == ["vanilla", "cot", "coconut"]
    cot = summary["modes"]["cot"]
    assert (cot["accuracy"], cot["n"], cot["ci95"], cot["mean_new_tokens"]) == (0.5, 500, [0.2, 0.3], 2.0)
    table = capsys.readouterr().out
    assert len({len(line) for line in table.splitlines()[:4]}) == 1  # aligned
    assert "cot" in table and "0.500" in table and "3.0 minutes" in table


def test_an_accuracy_that_is_not_known_is_shown_as_such(runs):
    path = runs / "cot" / "evaluation" / "cot.json"
    path.write_text(json.dumps(ROW | {"accuracy": None, "n": 0, "ci95": [0.0, 1.0], "chance": None}))
    table = format_table(write_summary({"cot": runs / "cot"}, [], runs / "out.json"))
    assert "unknown" in table and "chance" not in table


@pytest.mark.parametrize("content", [None, "{", "5", '{"accuracy": 1}'])
def test_what_is_not_an_evaluation_is_named(runs, content):
    path = runs / "cot" / "evaluation" / "cot.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=r"evaluation/cot\.json"):
        write_summary({"cot": runs / "cot"}, [], runs / "out.json")
    assert not (runs / "out.json").exists()


@pytest.mark.parametrize(("content", "named"), [(None, r"metrics\.jsonl"), ('{"step": 1}\n{"st', r"metrics\.jsonl:2")])
def test_metrics_that_cannot_be_read_are_named(runs, content, named):
    path = runs / "cot" / "metrics.jsonl"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=named):
        write_summary({"cot": runs / "cot"}, [runs / "cot"], runs / "out.json")
