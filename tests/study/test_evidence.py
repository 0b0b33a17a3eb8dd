"""What the pages say of studies is what these have written."""

import json
from collections import defaultdict
from statistics import fmean

import pytest
from homes import REPO

from multicoco.study.schema import UNTOUCHED, StudyResult


def result(name: str) -> StudyResult:
    return StudyResult.model_validate_json((REPO / "benchmarks" / "results" / f"{name}.json").read_text())


STUDY, METHODS, TEXT = result("study_scenes"), result("study_methods"), result("study_text")
PROSQA, PROSQA_METHODS = result("study_prosqa"), result("study_prosqa_methods")
EVIDENCE = (REPO / "docs" / "evidence.md").read_text()
TESTS = list(STUDY.spec["tests"])
SECTIONS = {"## Scenes": STUDY, "## In sentences: three hops": TEXT, "## ProsQA: paths": PROSQA}  # all that was run
OF_METHODS = {"## Methods": METHODS, "## ProsQA: methods": PROSQA_METHODS}  # which share controls with the above


def accuracies(arm: str, test: str, intervention: str = UNTOUCHED, study: StudyResult = STUDY) -> list[float]:
    wanted = (arm, test, intervention)
    found = {run.seed: run.accuracy for run in study.runs if (run.arm, run.test, run.intervention) == wanted}
    return [accuracy for _, accuracy in sorted(found.items()) if accuracy is not None]


def mean_and_each(of_seeds: list[float]) -> str:
    return f"{fmean(of_seeds):.3f} ({', '.join(f'{one:.3f}' for one in of_seeds)})"


def training(arm: str, study: StudyResult = STUDY) -> list[str]:
    """The last cells of an arm's row, the same for all seeds: steps, million tokens, passes."""
    of_seeds = [
        [str(run.steps), f"{run.tokens / 1e6:.1f}", str(run.passes)]
        for run in study.runs
        if (run.arm, run.test, run.intervention) == (arm, TESTS[0], UNTOUCHED)
    ]
    assert of_seeds[1:] == of_seeds[:-1]
    return of_seeds[0]


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading row that begins so."""
    lines = page[page.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def section(heading: str) -> str:
    return EVIDENCE[EVIDENCE.index(heading) :]


@pytest.mark.parametrize("heading", [*SECTIONS, *OF_METHODS])
def test_the_table_of_arms_is_the_studys(heading):
    study = (SECTIONS | OF_METHODS)[heading]
    shown, tests = rows(section(heading), "| arm | val"), list(study.spec["tests"])
    if heading in SECTIONS:
        assert [row[0] for row in shown] == [arm for arm in study.arms if accuracies(arm, tests[0], study=study)]
    for arm, *cells in shown:
        for test, cell in zip(tests, cells, strict=False):
            assert cell == mean_and_each(accuracies(arm, test, study=study))
        assert cells[len(tests) :] == training(arm, study)


@pytest.mark.parametrize("heading", OF_METHODS)
def test_the_table_of_interventions_on_methods_is_their_studys(heading):
    page, study = section(heading), OF_METHODS[heading]
    columns = next(line for line in page.splitlines() if line.startswith("| thoughts |"))
    arms = [cell.strip() for cell in columns.strip("|").split("|")][1:]
    for intervention, *cells in rows(page, columns):
        each = [accuracies(arm, "val", intervention, study) for arm in arms]
        assert cells == [f"{fmean(one):.3f}" for one in each]


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_table_of_interventions_is_the_studys(heading):
    study, shown = SECTIONS[heading], rows(section(heading), "| thoughts | val")
    tests = list(study.spec["tests"])
    assert [row[0] for row in shown] == list(dict.fromkeys(run.intervention for run in study.runs))
    for intervention, *cells in shown:
        assert cells == [f"{fmean(accuracies('coconut', test, intervention, study)):.3f}" for test in tests]


def test_the_table_of_differences_is_the_studys():
    shown = {(row[0], row[1]): row[2:] for row in rows(EVIDENCE, "| test set | coconut less")}
    pairs = [pair for pair in STUDY.pairs if pair.kind == "arms" and "coconut" in (pair.first, pair.second)]
    expected = {}
    for pair in pairs:
        sign, other = (1, pair.second) if pair.first == "coconut" else (-1, pair.first)
        low, high = sorted(sign * end for end in pair.ci95)
        interval = f"{low:+.3f} to {high:+.3f}"
        expected[pair.test, other] = [f"{sign * pair.difference:+.3f}", interval, f"{pair.p_holm:.2g}"]
    assert shown == expected


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_verdict_is_quoted(heading):
    said = " ".join(section(heading).replace("> ", "").split())
    for reading in SECTIONS[heading].verdict["readings"]:
        assert reading in said and reading in SECTIONS[heading].text


def test_the_readme_shows_the_studys_accuracies():
    for arm, *cells in rows((REPO / "README.md").read_text(), "| trained as"):
        of = STUDY if arm in STUDY.arms else METHODS
        assert cells == [f"{fmean(accuracies(arm, test, study=of)):.3f}" for test in TESTS]


def test_the_readme_tells_of_the_study_in_sentences():
    page = " ".join((REPO / "README.md").read_text().split())
    said = page[page.index("**The same hops in sentences**") :].split("**ProsQA's graphs**")[0]
    for arm, told in {"coconut": "{} of them", "pause": "({})", "no_thoughts": "({})", "direct": "({})"}.items():
        assert told.format(f"{fmean(accuracies(arm, 'val', study=TEXT)):.3f}") in said


def test_the_readme_tells_of_the_studies_of_prosqa():
    page = " ".join((REPO / "README.md").read_text().split())
    said = page[page.index("**ProsQA's graphs**") :].split(" All of it:")[0]
    told = {"learns them, {}.": ("cot", UNTOUCHED)}
    told |= {"every seed, {} (": ("sim_cot", UNTOUCHED), "leave {}), and": ("sim_cot", "transplant")}
    told |= {"stays at {}.": ("coconut", UNTOUCHED)}
    for words, (arm, intervention) in told.items():
        assert words.format(f"{fmean(accuracies(arm, 'val', intervention, PROSQA_METHODS)):.3f}") in said


def test_the_table_of_more_thoughts_is_what_was_measured():
    of: dict[tuple[str, int, int], dict[int, float]] = defaultdict(dict)
    for run in json.loads((REPO / "benchmarks" / "results" / "more_thoughts.json").read_text())["runs"]:
        of[run["arm"], run["hops"], run["seed"]][run["thoughts"]] = run["accuracy"]
    for arm, *cells in rows(EVIDENCE, "| arm | four hops, thoughts of three"):
        of_a_hop, expected = 4 if arm.endswith("twice") else 2, []
        for hops in (4, 5):
            seeds = [of[arm, hops, seed] for seed in (0, 1, 2)]
            expected += [", ".join(f"{one[n * of_a_hop]:.3f}" for one in seeds) for n in (3, hops)]
            most = [min(one, key=lambda n: (-one[n], n)) for one in seeds]
            expected.append(", ".join(f"{one[n]:.3f} ({n})" for one, n in zip(seeds, most, strict=True)))
        assert cells == expected
