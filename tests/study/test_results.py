"""What a study writes about runs that something that stands for train.py has done."""

import json
from pathlib import Path

import pytest
import yaml
from fake_runs import started, write_run, write_samples

from multicoco.cli import main
from multicoco.study.keys import ArmSpec, QuestionsSpec, StudySpec
from multicoco.study.schema import PairResult, RunResult, StudyResult


def result() -> StudyResult:
    return StudyResult.model_validate_json(Path("studies/tiny/study.json").read_text())


def test_study_json_has_runs_pairs_and_the_verdict(written, study, capsys):
    study["arms"]["direct"] = {"set": {"num_epochs": 3}}
    assert main(["study", str(written())]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report of studies/tiny"
    found = result()
    accuracies = {(run.arm, run.seed): run.accuracy for run in found.runs}
    assert accuracies == {
        (arm, seed): a for arm, a in (("direct", 0.2), ("start", 0.3), ("hidden", 0.9)) for seed in (0, 1)
    }
    costs = {run.arm: (run.steps, run.tokens, run.passes, run.peak_memory) for run in found.runs}
    assert costs == {"direct": (30, 2100, 60, 3), "start": (10, 700, 20, 1), "hidden": (30, 2100, 60, 2)}
    pairs = {(pair.first, pair.second): pair for pair in found.pairs}
    assert pairs["direct", "hidden"].difference == pytest.approx(-0.7) and not found.refused
    assert pairs["direct", "hidden"].by_seed == pytest.approx([-0.7, -0.7])
    assert found.environments == [{"torch": "2.13"}]
    folders = [Path("studies/tiny") / run.folder for run in found.runs]
    assert len({*folders}) == 6 and all((folder / "evaluation").is_dir() for folder in folders)
    assert found.verdict["finding"] is False
    assert found.verdict["besides"]["hidden against direct"]["relation"] == "better"
    assert found.text.splitlines()[0].startswith("test set")


def test_arms_that_were_trained_differently_are_not_compared_unless_it_is_said(written, study, capsys):
    study["seeds"] = [0]
    study["arms"]["direct"] = {"set": {"train_path": "other.json"}}
    assert main(["study", str(written())]) == 0
    found = result()
    assert ("direct", "hidden") not in {(pair.first, pair.second) for pair in found.pairs}
    assert found.refused[0].startswith("not compared: direct and hidden differ in their steps (10 and 30), data; if")
    assert "hidden against direct" not in found.verdict["besides"]
    assert "`differs: [steps, data]` at one of them says so" in capsys.readouterr().out
    study["arms"]["direct"]["differs"] = ["data", "steps"]
    assert main(["study", str(written())]) == 0
    assert ("direct", "hidden") in {(pair.first, pair.second) for pair in result().pairs}
    # the rule is about equal training
    assert result().refused == ["not read by the rule: direct and hidden differ in their steps (10 and 30), data"]
    assert "hidden against direct" not in result().verdict["besides"]


def test_interventions_are_compared_with_the_untouched_thoughts(written, study):
    study["seeds"] = [0]
    study["arms"] = {"hidden": {"set": study["arms"]["hidden"]["set"]}}
    assert main(["study", str(written())]) == 0
    [folder] = [path.parent.parent for path in Path("studies/tiny").glob("hidden-*/seed_0/val-*/evaluation/*")]
    samples = [json.loads(line) for line in (folder / "samples" / "final_coconut.jsonl").read_text().splitlines()]
    wrong = [sample | {"correct": False, "question": "of the other input"} for sample in samples]
    write_samples(folder, "coconut.mean", wrong)
    path = folder / "evaluation" / "coconut.mean.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intervention": "mean"}))
    assert main(["study", str(written())]) == 0
    [pair] = result().pairs
    assert (pair.kind, pair.second, pair.difference) == ("intervention", "hidden under mean", pytest.approx(0.9))
    [condition] = [one for one in result().verdict["conditions"] if "(mean)" in one["says"]]
    assert condition["outcome"] == "held"
    assert [run.intervention for run in result().runs] == ["untouched", "mean"]


def test_every_field_of_study_json_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    fields = {name for model in (StudyResult, RunResult, PairResult) for name in model.model_fields}
    keys = {name for model in (StudySpec, ArmSpec, QuestionsSpec) for name in model.model_fields}
    assert not [name for name in fields | keys if f"`{name}`" not in page], "in docs/studies.md"


def test_a_folder_of_another_study_is_left_alone(written, study, capsys):
    study["seeds"] = [0]
    study["arms"] = {"direct": {}}
    assert main(["study", str(written())]) == 0
    before = Path("studies/tiny/study.json").read_text()
    study["arms"] = {"direct": {"set": {"lr": 0.3}}}  # a name that both have is not enough
    Path("other.yaml").write_text(written().read_text())
    assert main(["study", "other.yaml"]) == 1
    assert "is of another study, " in capsys.readouterr().err
    assert Path("studies/tiny/study.json").read_text() == before
    Path("studies/tiny/study.json").write_text("{}")
    assert main(["study", str(written())]) == 1
    assert "study.json is not what a study writes" in capsys.readouterr().err


def test_studies_that_share_a_folder_each_keep_their_results(written, study):
    study["seeds"], study["arms"] = [0], {"direct": {}, "start": {}}
    larger = written()
    assert main(["study", str(larger)]) == 0
    before = result()
    study["arms"] = {"direct": {}}
    Path("smaller.yaml").write_text(yaml.safe_dump(study))
    started()
    assert main(["study", "smaller.yaml"]) == 0 and not started()
    assert result().arms == ["direct"]
    kept = Path("studies/tiny/study.study.json")
    assert StudyResult.model_validate_json(kept.read_text()) == before
    assert main(["study", str(larger)]) == 0
    assert result() == before and not kept.exists()
    assert Path("studies/tiny/study.smaller.json").exists()
    Path("other").mkdir()
    study["config"] = "../base.yaml"
    namesake = Path("other/study.yaml")
    namesake.write_text(yaml.safe_dump(study))
    for _ in range(2):  # a second time it has results of its own to look for, of the same name
        assert main(["study", str(namesake)]) == 0
        assert StudyResult.model_validate_json(kept.read_text()) == before
    assert main(["study", "smaller.yaml"]) == 0
    assert StudyResult.model_validate_json(kept.read_text()) == before
    assert Path("studies/tiny/study.study-2.json").exists() and not started()


def test_a_test_set_that_cannot_be_compared_costs_no_other_one(written, study, capsys):
    """Nor does a training that is damaged cost more than its own answers."""
    study["seeds"], study["arms"] = [0], {"direct": {}, "other": {"set": {"lr": 0.4}}}
    study["tests"] = {name: {"set": {"val_path": "val.json", "max_val_samples": n}} for n, name in enumerate("abc", 1)}
    assert main(["study", str(written())]) == 0
    assert {run.test for run in result().runs} == {*"abc"}
    [fewer] = Path("studies/tiny").glob("direct-*/seed_0/a-*/evaluation")
    write_run(fewer.parent, "vanilla", "+" * 40)
    for unknown in Path("studies/tiny").glob("*/seed_0/b-*/evaluation"):
        write_run(unknown.parent, "vanilla", "?" * 50)
    assert main(["study", str(written())]) == 0
    found = result()
    assert {run.test for run in found.runs} == {"c"} and len(found.pairs) == 1
    [of_a, of_b] = found.refused
    assert "a: not the same questions" in of_a and "40 are shared, of 40 of direct/0; 50 of other/0" in of_a
    assert "--shared" not in of_a and of_b.startswith("not read: b: no question with a known answer is shared")
    [state] = Path("studies/tiny").glob("other-*/seed_0/train/checkpoints/*/trainer.json")
    state.write_text(json.dumps(json.loads(state.read_text()) | {"data": None}))
    assert main(["study", str(written())]) == 0
    found = result()
    assert {(run.test, run.arm) for run in found.runs} == {("a", "direct"), ("c", "direct")}
    assert f"{state} cannot be read: data" in found.refused[0]


def test_what_is_the_same_is_not_told_by_how_its_path_is_written(written, study, tmp_path):
    """And the same file is not the same data if fewer of its records are examples."""
    (tmp_path / "model").mkdir()
    study["seeds"], arms = [0], {"direct": {}, "other": {"set": {"model_id": "./model"}}}
    arms["fewer"] = {"set": {"max_train_samples": 5}}
    study["arms"] = arms
    assert main(["study", str(written())]) == 0
    assert {(pair.first, pair.second) for pair in result().pairs} == {("direct", "other")}
    assert [sentence.split(";")[0] for sentence in result().refused] == [
        f"not compared: {arms} differ in their data" for arms in ("direct and fewer", "fewer and other")
    ]
    for arm, size in (("direct", 8), ("other", 16)):  # as many steps of larger batches are not the same steps
        [state] = Path("studies/tiny").glob(f"{arm}-*/seed_0/train/checkpoints/*/trainer.json")
        state.write_text(json.dumps(json.loads(state.read_text()) | {"global_batch": size}))
    assert main(["study", str(written())]) == 0 and not result().pairs
    [told] = [sentence for sentence in result().refused if "direct and other" in sentence]
    assert "differ in their steps (10 each, of 80 and 160 examples in all)" in told
