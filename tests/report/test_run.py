"""A run in the page's words."""

import json

import pytest
from pages import write_training

from multicoco.report.folder import read_run
from multicoco.report.run import run_part


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        (
            [0.9, 1.0, 0.6, 0.8, 1.0, 1.0],
            "The hardest stage was stage 2: accuracy 0.600 after its first epoch, 0.800 at",
        ),
        (
            [0.9, 1.0, 0.6, 1.0, 0.5, 1.0],
            "The hardest stage was stage 3: accuracy 0.500 after its first epoch, 1.000 at",
        ),
        ([1.0] * 6, "No stage stands out: all had the same accuracy after their first epochs, and at their best. The "),
        ([0.5], ""),
    ],
)
def test_the_hardest_stage_is_named(tmp_path, accuracies, said):
    stages = (2, 2, 2) if len(accuracies) > 1 else (1,)
    run = write_training(tmp_path / "run", stages)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line, accuracy in zip([line for line in lines if "eval/coconut/n" in line], accuracies, strict=True):
        line["eval/coconut/accuracy"] = accuracy
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    hardest = run_part(read_run(run)).hardest
    assert hardest.startswith(said) and bool(hardest) == bool(said)
    if "No stage" in said:
        assert hardest.endswith("The loss ended the highest in stage 1, at 0.1.")


def test_official_scores_are_a_table_of_scores_by_evaluation(tmp_path):
    (tmp_path / "evaluation").mkdir()
    of_cot = {"scienceqa/natural": 0.75, "scienceqa/natural_n": 4, "scienceqa/social": 1, "scienceqa/social_n": 1}
    for mode, scores in (("cot", of_cot), ("vanilla", {"scienceqa/natural": 0.5, "scienceqa/natural_n": 1200})):
        (tmp_path / "evaluation" / f"{mode}.json").write_text(json.dumps({"accuracy": 0.7, "n": 5, **scores}))
    official = run_part(read_run(tmp_path)).official
    assert list(official.header) == ["score", "n", "cot", "vanilla"]
    assert [list(row) for row in official.rows] == [
        ["scienceqa/natural", "4, 1,200", "0.750", "0.500"],
        ["scienceqa/social", "1", "1.000", ""],
    ]
    (tmp_path / "evaluation" / "cot.json").write_text(json.dumps({"accuracy": 0.7, "n": 5}))
    (tmp_path / "evaluation" / "vanilla.json").unlink()
    assert run_part(read_run(tmp_path)).official is None
