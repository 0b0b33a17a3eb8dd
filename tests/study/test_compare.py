import json
import os

import pytest
from fake_runs import write_run

from multicoco.cli import main
from multicoco.errors import UserError
from multicoco.evaluation.metrics import wilson_interval
from multicoco.study.compare import compare
from multicoco.study.statistics import holm, mcnemar, newcombe_interval


@pytest.fixture
def runs(tmp_path):
    """Discordant: a over b in 8 and 1, a over c in 1 and 0, b over c in 1 and 7."""
    a = write_run(tmp_path / "a", "coconut", 8 * "+" + "-" + 10 * "+" + "-")
    b = write_run(tmp_path / "b", "cot", 8 * "-" + "+" + 10 * "+" + "-")
    c = write_run(tmp_path / "c", "vanilla", "-" + 7 * "+" + "-" + 10 * "+" + "-")
    return a, b, c


def test_every_two_are_compared_in_one_family(runs):
    comparison = compare([str(run) for run in runs])
    assert (comparison.n, comparison.chance) == (20, 0.5)
    assert [(row.correct, row.ci95) for row in comparison.evaluations] == [
        (k, wilson_interval(k, 20)) for k in (18, 11, 17)
    ]
    p_values = [mcnemar(8, 1), mcnemar(1, 0), mcnemar(1, 7)]
    assert [pair.p for pair in comparison.pairs] == pytest.approx(p_values)
    assert [pair.p_holm for pair in comparison.pairs] == pytest.approx(holm(p_values))
    first = comparison.pairs[0]
    assert first.difference == pytest.approx(7 / 20) and first.ci95 == newcombe_interval(10, 8, 1, 1)
    assert (first.gained, first.lost) == ([f"q{i}" for i in range(8)], ["q8"])


def test_with_a_reference_each_is_compared_with_it_alone(runs):
    comparison = compare([str(run) for run in runs], reference=str(runs[1]))
    assert [(pair.first, pair.second) for pair in comparison.pairs] == [
        (f"{runs[0]}:coconut", f"{runs[1]}:cot"),
        (f"{runs[2]}:vanilla", f"{runs[1]}:cot"),
    ]
    assert [pair.p_holm for pair in comparison.pairs] == pytest.approx(holm([mcnemar(8, 1), mcnemar(7, 1)]))


def test_a_reference_may_be_named_otherwise_than_the_run(runs, monkeypatch):
    monkeypatch.chdir(runs[0].parent)
    [pair] = compare(["a", "b"], reference=str(runs[1])).pairs
    assert (pair.first, pair.second) == ("a:coconut", "b:cot")


def test_the_command_prints_tables_and_writes_all_flips(runs, capsys, monkeypatch):
    monkeypatch.setenv("RUNS", str(runs[0].parent))
    out = runs[0].parent / "new" / "comparison.json"
    assert main(["compare", "$RUNS/a", "$RUNS/b:cot", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "20 questions; guessing gives 0.500" in text
    assert "+0.350" in text and f"{mcnemar(8, 1):.4f}" in text
    assert f"{runs[1]}:cot right and {runs[0]}:coconut wrong: q8\n" in text
    written = json.loads(out.read_text())
    assert written["pairs"][0]["gained"] == [f"q{i}" for i in range(8)]
    assert written["evaluations"][1]["name"] == f"{runs[1]}:cot"


def test_long_lists_of_flips_are_cut_in_the_text(tmp_path, capsys):
    a, b = write_run(tmp_path / "a", "cot", 30 * "+"), write_run(tmp_path / "b", "cot", 30 * "-")
    assert main(["compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "q11, and 18 more" in text and "q12" not in text and "2e-09" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{tmp}/a"], "only evaluation"),
        (["{tmp}/a", "{tmp}/a:coconut"], "named twice"),
        (["{tmp}/a", "{tmp}/b/../a"], "{tmp}/a:coconut, {tmp}/b/../a:coconut: named twice"),
        (["{tmp}/a", "{tmp}/b", "--out", "{tmp}/c"], "{tmp}/c is a folder: name a file in it"),
        (["{tmp}/a", "{tmp}/b", "--out", "{tmp}/a/evaluation/coconut.json/x"], "x cannot be written"),
        (
            ["{tmp}/a", "{tmp}/b", "--out", "{tmp}/a/evaluation/coconut.json"],
            "coconut.json is there and holds",
        ),
        (["{tmp}/a", "{tmp}/b", "--out", "{tmp}/notes.md"], "{tmp}/notes.md is there and holds something else: name"),
        (["{tmp}/a", "{tmp}/b", "--out", "{tmp}/pipe"], "{tmp}/pipe is there"),
        (["{tmp}/a", "{tmp}/none"], "{tmp}/none: no evaluation"),
        (["{tmp}/a", "{tmp}/b", "--reference", "{tmp}/c"], "must be one of {tmp}/a:coconut, {tmp}/b:cot"),
        (["{tmp}/a", "{tmp}/other"], "--shared compares on these alone"),
    ],
)
def test_mistakes_get_one_message(runs, capsys, arguments, expected):
    tmp = runs[0].parent
    write_run(tmp / "other", "cot", "++", first=19)
    (tmp / "notes.md").write_text("# Mine")
    os.mkfifo(tmp / "pipe")
    assert main(["compare", *(argument.format(tmp=tmp) for argument in arguments)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and expected.format(tmp=tmp) in message
    assert (tmp / "notes.md").read_text() == "# Mine"


def test_an_earlier_comparison_is_written_over_and_so_is_an_empty_file(runs):
    out = runs[0].parent / "comparison.json"
    out.touch()
    for pair, n in ((runs[:2], 9), (runs[1:], 8)):
        assert main(["compare", *map(str, pair), "--out", str(out)]) == 0
        [found] = json.loads(out.read_text())["pairs"]
        assert len(found["gained"] + found["lost"]) == n


def test_shared_questions_can_be_asked_for(runs):
    other = write_run(runs[0].parent / "other", "cot", "++", first=19)
    assert compare([str(runs[0]), str(other)], only_shared=True).n == 1
    with pytest.raises(UserError, match="not the same questions"):
        compare([str(runs[0]), str(other)])
