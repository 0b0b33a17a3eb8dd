"""A study's page."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import opened, write_answers

from multicoco.errors import UserError
from multicoco.files import write_json
from multicoco.report.page import write_report
from multicoco.study.schema import UNTOUCHED, PairResult, RunResult, StudyResult
from multicoco.study.verdict import Evidence, judge

N, SEEDS = 40, (0, 1, 2)
ACCURACIES = {"direct": 0.3, "hidden": 0.9, "pause": 0.4}


def answers(accuracy: float) -> dict[int, Any]:
    return {seed: np.arange(N) < N * accuracy + seed for seed in SEEDS}


def run_result(test: str, arm: str, seed: int, accuracy: float, intervention: str = UNTOUCHED) -> RunResult:
    about = {"arm": arm, "seed": seed, "test": test, "intervention": intervention, "accuracy": accuracy, "n": N}
    about["folder"] = f"{arm}-1/seed_{seed}/{test}-0"
    cost = {"mean_new_tokens": 2.0, "mean_latent_passes": 6.0 * (arm == "hidden")}
    trained = {"steps": 10, "tokens": 9, "passes": 70, "peak_memory": 2**30}
    times = {"train_seconds": 60.0, "evaluation_seconds": 1.0}
    known = {"ci95": (accuracy - 0.1, accuracy + 0.1), "chance": 0.25}
    return RunResult(**about, **cost, **trained, **times, **known)  # type: ignore[arg-type]


def pair(kind: str, test: str, first: str, second: str, difference: float) -> PairResult:
    figures = {"difference": difference, "ci95": (difference - 0.1, difference + 0.05), "n": N}
    by_seed = {"seeds": [*SEEDS], "by_seed": [difference] * 3, "gained": [9] * 3, "lost": [1] * 3}
    tests: dict[str, Any] = {"p": 0.01, "p_holm": 0.02, "p_by_seed": [0.01] * 3}
    return PairResult(kind=kind, test=test, first=first, second=second, **figures, **by_seed, **tests)  # type: ignore[arg-type]


@pytest.fixture
def study(tmp_path) -> Path:
    """The folder of a study with three arms, two test sets and an intervention, as `multicoco study` leaves it."""
    arms = {arm: answers(accuracy) for arm, accuracy in ACCURACIES.items()}
    verdict = judge(Evidence(arms, {"mean": answers(0.2)}, {"far": arms}))
    asked = [(test, arm, seed) for test in ("val", "far") for arm in ACCURACIES for seed in SEEDS]
    runs = [run_result(test, arm, seed, ACCURACIES[arm] + seed / 50) for test, arm, seed in asked]
    result = StudyResult(
        name="tiny",
        file="study.yaml",
        arms=list(ACCURACIES),
        spec={"tests": {"far": {"out_of_distribution": True}, "val": {"out_of_distribution": False}}},
        environments=[{"git": None, "torch": "2.13.0", "cpu": "a fast one", "cores": 2}],
        runs=[*runs, *(run_result("val", "hidden", seed, 0.2, "mean") for seed in SEEDS)],
        pairs=[
            pair("arms", "val", "hidden", "pause", 0.5),
            pair("intervention", "val", "hidden", "hidden under mean", 0.7),
        ],
        refused=["not compared: <b>direct</b>"],
        verdict=asdict(verdict),
        text="as printed",
    )
    write_json(tmp_path / "study.json", result.model_dump(mode="json"))
    for arm, accuracy in ACCURACIES.items():
        for digest in ("1", "0", "longer-1"):  # the arm was changed and changed back, and there is one of a longer name
            folder = tmp_path / f"{arm}-{digest}" / "seed_0" / "val-0"
            write_answers(folder, "coconut", [place < N * accuracy * (digest == "1") for place in range(N)])
            write_json(folder / "done.json", {})
    return tmp_path


@pytest.mark.parametrize("width", [400, 1600])
def test_it_has_the_verdict_arms_interventions_cost_and_answers(study, browser, width):
    file = write_report([study])
    assert file == study / "report.html"
    with opened(browser, file, width) as shown:
        assert shown.texts(".headline") == ["Not shown: that the thoughts carry the reasoning"]
        conditions = shown.texts(".conditions li")
        assert shown.texts(".about")[1].endswith("(no git revision), torch 2.13.0 (a fast one, 2 cores).")
        held = [text for text in conditions if text.startswith("✓")]
        assert any("beats pauses" in text and "+0.500 (95% interval" in text for text in held)
        assert any("(mean)" in text for text in held) and any("not measured" in text for text in conditions)
        assert shown.texts("figcaption") == [
            *("Arms on val (in distribution)", "Arms on far (out of distribution)"),
            *("Arms against each other on val", "Interventions on the thoughts of hidden"),
            *("Accuracy against latent passes", "Accuracy against tokens written", "Accuracy against seconds"),
        ]
        assert "<b>direct</b>" in shown.texts(".problems")[0]
        assert shown.texts(".question >> nth=0 >> .chip") == ["✓ direct a", "✓ hidden a", "✓ pause a"]


def test_every_seed_is_a_point(study):
    page = write_report([study]).read_text()
    [svg] = [part.split("</figure>")[0] for part in page.split("<figure>") if "Arms on val" in part]
    dots = [part.split('"')[0] for part in svg.split('<use href="#')[1:]]
    assert dots.count(max(dots, key=dots.count)) >= 3 * len(ACCURACIES)


def test_an_intervention_that_hurts_is_left_of_zero(study):
    page = write_report([study]).read_text()
    [svg] = [part.split("</figure>")[0] for part in page.split("<figure>") if "Interventions on" in part]
    assert "\N{MINUS SIGN}0.7" in svg and "hurts" in svg


def test_the_thoughts_of_each_arm_have_a_chart_of_their_own(study):
    """Two arms' points on one row could not be told apart."""
    content = json.loads((study / "study.json").read_text())
    content["pairs"].append(pair("intervention", "val", "other", "other under mean", 0.1).model_dump())
    write_json(study / "study.json", content)
    page = write_report([study]).read_text()
    charts = {part.split("</figcaption>")[0].split(">")[-1]: part for part in page.split("<figure>")}
    of_hidden, of_other = (charts[f"Interventions on the thoughts of {arm}"] for arm in ("hidden", "other"))
    assert "\N{MINUS SIGN}0.7" in of_hidden and "\N{MINUS SIGN}0.7" not in of_other


def test_its_file_may_be_named_and_a_broken_one_is_said(study):
    assert write_report([study / "study.json"]) == study / "report.html"
    (study / "study.json").write_text("{}")
    with pytest.raises(UserError, match=r"study.json is not what this version's studies write"):
        write_report([study])
