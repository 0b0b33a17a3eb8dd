"""Mistakes in STUDY.yaml get one message, before anything is started."""

from pathlib import Path

import pytest

from multicoco.cli import main
from multicoco.config import RunConfig
from multicoco.errors import UserError
from multicoco.study.spec import load_study


def change(study: dict, where: str, value: object) -> None:
    *path, last = where.split("/")
    for key in path:
        study = study[key]
    study[last] = value


@pytest.mark.parametrize(
    ("where", "value", "expected"),
    [
        ("arms/hidden/after", "strat", "arms.hidden: there is no arm 'strat' to start from; did you mean start?"),
        ("arms/hidden/after", "xyz", "there are direct, hidden, start"),
        ("arms/start/after", "hidden", "after goes in a circle: hidden -> start -> hidden"),
        ("arms/start/after", "start", "after goes in a circle: hidden -> start -> start"),
        ("arms/start/set", {"seed": 3}, "arms.start.set: seed is the study's to set"),
        ("arms/hidden/set", {"load_model_path": "x"}, "arms.hidden: load_model_path and after are two beginnings"),
        ("arms/start/role", "hidden", "two have the role hidden"),
        ("arms/start/role", "other", "arms.start.role: must be 'hidden', 'cot'"),
        ("arms/start/set", {"lrr": 1}, "lrr"),
        ("arms/start/set", {"lrr": 1}, "study.yaml: arm start: "),
        ("arms/start/config", "none.yaml", "none.yaml"),
        ("arms/start/differs", ["lr"], "arms.start.differs.0: must be 'steps', 'data' or 'weights'"),
        ("arms", {}, "arms: "),
        ("arms", {"a/b": {}}, "must be the name of a folder"),
        ("seeds", [1, 1], "one is listed twice"),
        ("seeds", [], "seeds: "),
        ("tests/val/out_of_distribution", True, "one must be in distribution"),
        ("tests/val/sets", {}, "tests.val.sets: is no key of a study"),
        ("config", None, "neither it nor the study names a config"),
        ("name", "../up", "must be the name of a folder"),
    ],
)
def test_each_is_named(study, written, capsys, where, value, expected):
    change(study, where, value)
    assert main(["study", str(written())]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and expected in message and "Traceback" not in message
    assert not Path("studies").exists()


def test_interventions_are_on_the_hidden_arm_and_on_those_that_are_said_to_be(study, written):
    study["interventions"] = ["zero"]
    study["arms"]["direct"]["intervened"] = True
    jobs = [job for job in load_study(written()).jobs if job.test]
    intervened = {job.arm for job in jobs if any("eval_config.interventions" in key for key in job.overrides)}
    assert intervened == {"hidden", "direct"} and {job.arm for job in jobs} == {"hidden", "direct", "start"}


def test_an_unknown_run_is_named(written, capsys):
    assert main(["study", str(written()), "--only", "hidden/7"]) == 1
    assert "--only hidden/7: the study has direct/0, start/0, hidden/0" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[", "- a", "", "\x00"])
def test_what_is_no_study_is_named(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"study\.yaml"):
        load_study(path)
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        load_study(tmp_path / "none.yaml")


def test_how_a_run_is_watched_does_not_make_it_another(study, written):
    before = load_study(written()).training_folder("direct", 0)
    study["arms"]["direct"] = {"set": {"log_every_steps": 3, "num_workers": 1}}
    assert load_study(written()).training_folder("direct", 0) == before
    study["arms"]["direct"]["set"]["max_skipped_steps"] = RunConfig.model_fields["max_skipped_steps"].default
    assert load_study(written()).training_folder("direct", 0) == before
    study["arms"]["direct"]["set"]["lr"] = "1e-3"
    assert load_study(written()).training_folder("direct", 0) != before
