"""What benchmarks/families.py takes through the launcher, without it: the forms of data are the same questions, and one
family runs on two forked ranks. All of it: `make families`."""

import json
from pathlib import Path

import families
import forms
import numpy as np
import pytest
from homes import REPO

from multicoco.config import load_config
from multicoco.data.example import load_image
from multicoco.data.sources import load_examples
from multicoco.models.tiny import TINY
from multicoco.tasks.scenes import render_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("forms") / "scenes"
    render_scenes(folder, 5, 1, 0, kinds=("tile",))
    return folder


@pytest.mark.parametrize("form", forms.FORMS)
def test_a_form_is_read_as_the_release_is(scenes, form):
    records = json.loads((scenes / "aokvqa_v1p0_train.json").read_text())
    release = load_examples(scenes / "aokvqa_v1p0_train.json", scenes)
    name = forms.FORMS[form](scenes, records, scenes / f"form_{[*forms.FORMS].index(form)}")
    read = load_examples(scenes / name, scenes)
    assert len(read) == len(release) == 5
    for record, expected, example in zip(records, release, read, strict=True):
        assert example.steps == expected.steps and len(example.steps) == 3
        if form == "GSM8K":  # numbers, and no pictures
            assert example.answer == str(record["image_id"]) and not example.images
            continue
        assert example.question.split("\nContext")[0] == expected.question and example.answer == expected.answer
        assert example.choices == (() if form == "LLaVA's conversations" else expected.choices)
        pictures = [np.asarray(load_image(one.images[0])) for one in (expected, example)]
        assert np.array_equal(*pictures)
        assert example.direct_answers == (expected.direct_answers if "A-OKVQA" in form and "flat" not in form else ())


def test_every_form_is_taken_through_by_a_family():
    taken = [form for form, _ in families.CASES.values()]
    assert {*taken, families.OTHER[0]} == {*forms.FORMS} and {*families.CASES} <= {*TINY}


def test_what_is_told_of_the_families_is_what_was_measured():
    """docs/models.md has a line of each that went through."""
    result = json.loads((REPO / "benchmarks" / "results" / "families.json").read_text())
    page = (REPO / "docs" / "models.md").read_text()
    assert "deepspeed --num_gpus 2" in result["settings"]["launcher"]
    assert all(row["ended"] == "well" for row in result["rows"])
    assert {row["family"] for row in result["rows"]} == {*TINY}
    for family in {row["family"] for row in result["rows"]}:
        runs = [row for row in result["rows"] if row["family"] == family]
        assert [row["run"] for row in runs] == [*families.RUNS] and runs[1]["stages"] == [0, 1]
        assert sorted(runs[2]["asked_as"]) == ["coconut", "cot", "vanilla"] and runs[2]["passes"] > 0
        line = f"| `{family}` | {runs[0]['form']} | {runs[0]['zero']} | through |"
        assert line in page, line


@pytest.mark.distributed
def test_the_cheapest_family_runs_on_two_ranks(tmp_path, run_server):
    form, stage = families.CASES["text"]
    config = families.prepare("text", form, stage, tmp_path)
    ended = run_server.run(config, *families.RUNS["coconut"], "num_epochs=2", ranks=2)
    assert ended.codes == [0, 0], ended.said
    summary = json.loads((tmp_path / "runs" / "run" / "evaluation" / "coconut.json").read_text())
    assert summary["n"] == families.N_VAL and "gsm8k/number_match" in summary
    assert load_config(config).val_path == "val_of_form.jsonl"
