"""Mistakes in STUDY.yaml get one message, before anything is started."""

from pathlib import Path

import pytest
from homes import REPO

from multicoco.cli import main
from multicoco.config import RunConfig
from multicoco.errors import UserError
from multicoco.methods import evaluated_methods
from multicoco.study.keys import read_study
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
        ("interventions", ["zeroo"], "interventions: there is no intervention 'zeroo'"),
        ("interventions", ["only(3", "meen)"], "interventions: there is no intervention 'meen'"),
        ("tests/val/set/seed", 5, "tests.val.set: seed is not about questions"),
        ("tests/val/set/coconut.c_thought", 5, "tests.val.set: coconut.c_thought is not about questions"),
        ("tests/val/set/eval_config", {"cot": True}, "tests.val.set: eval_config.cot is the study's to set"),
        ("tests/val/set/eval_config", {"methods": ["cot"]}, "tests.val.set: eval_config.methods is the study's to set"),
        ("arms/start/set", {"resume": False}, "arms.start.set: resume is the study's to set"),
        (
            "arms/start/set",
            {"mode": "eval_only", "method": "cot", "load_model_path": "x"},
            "mode must not be eval_only",
        ),
        ("arms/start/set", {"save_only_improve": True}, "arm start: save_only_improve must be false"),
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


def test_an_arm_is_asked_by_its_own_method_alone(study, written):
    before = [job.folder.name for job in load_study(written()).jobs if job.test]
    study["arms"]["direct"]["set"] = {"eval_config.methods": ["vanilla", "icot"], "eval_config.cot": True}
    asked = load_study(written())
    jobs = [job for job in asked.jobs if job.test]
    methods = {job.arm: evaluated_methods(asked.config_of(job)) for job in jobs}
    assert methods == {"direct": ["vanilla"], "start": ["vanilla"], "hidden": ["coconut"]}
    assert [job.folder.name for job in jobs] == before  # by the questions alone


def test_an_unknown_run_is_named(written, capsys):
    for option in ([], ["--list"]):
        assert main(["study", str(written()), "--only", "hidden/7", *option]) == 1
        assert "--only hidden/7: the study has direct/0, start/0, hidden/0" in capsys.readouterr().err
    assert main(["study", str(written()), "--only", "hidden", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["hidden/0", "hidden/1"]


def test_an_arm_begins_with_the_stage_that_what_it_starts_from_gives_it(study, written):
    """A single epoch is stage 1 after another arm, and would be stage 0, without thoughts, after none."""
    before = load_study(written()).training_folder("hidden", 0)
    study["arms"]["hidden"]["set"]["num_epochs"] = 1
    changed = load_study(written())
    assert changed.training_folder("hidden", 0) not in (before, changed.training_folder("start", 0))
    del study["arms"]["hidden"]["after"]
    with pytest.raises(UserError, match="there are no thoughts yet"):
        load_study(written())


def test_interventions_on_no_arm_are_refused(study, written):
    study["arms"] = {"latent": {}, "direct": {}}
    study["interventions"] = ["zero"]
    with pytest.raises(UserError, match=r"no arm on whose thoughts they are made: give `role: hidden`"):
        load_study(written())
    study["arms"]["latent"]["role"] = "hidden"
    assert load_study(written())


def test_a_run_that_goes_on_with_none_is_refused_wherever_it_says_so(study, written):
    path = Path("base.yaml")
    path.write_text(f"{path.read_text()}\nresume: false\n")
    with pytest.raises(UserError, match="arm direct: resume must be auto"):
        load_study(written())


def test_it_is_read_as_run_configs_are(tmp_path, study):
    """Numbers, dates and words are what they are there, and no key counts that stands twice; names may have dots."""
    path, content = tmp_path / "study.yaml", "name: tiny\nconfig: base.yaml\nseeds: [0]\ntests: {val: {set: {}}}\n"
    path.write_text(
        f"{content}arms:\n  no: {{set: {{lr: 1e-2, prompt_date: 2026-11-25, direct_instruction: no}}}}\n  v1.5: {{}}"
    )
    read = load_study(path)
    config = read.training_config("no")
    assert (config.lr, config.prompt_date, config.direct_instruction) == (0.01, "2026-11-25", "no")
    assert [*read.spec.arms] == ["no", "v1.5"]
    path.write_text(f"{content}arms:\n  cot: {{set: {{lr: 1}}}}\n  cot: {{}}\n")
    with pytest.raises(UserError, match=r"study\.yaml:7: key 'arms\.cot' stands twice"):
        load_study(path)


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


def test_the_short_study_of_methods_is_a_part_of_the_whole_one(monkeypatch):
    monkeypatch.chdir(REPO)
    study, whole = load_study(Path("args/studies/methods_scenes_short.yaml")), Path("args/studies/methods_scenes.yaml")
    short, spec = study.spec.model_dump(), read_study(whole).model_dump()
    for key in ("arms", "tests"):
        assert short[key].items() <= spec[key].items()
        spec[key] = short[key]
    assert short == spec and len(study.jobs) == 2 * 10 * 3
