"""What cannot be done is said before the first run is started."""

import json
from pathlib import Path

import pytest
from fake_runs import started

from multicoco.cli import main

COCONUT = {"mode": "coconut_train", "num_epochs": 4, "coconut.enabled": True, "coconut.c_thought": 2}
COCONUT |= {"coconut.max_latent_stage": 3}


@pytest.fixture
def thinking(study):
    """A study of an arm with 6 thoughts, on its last stage, and one without."""
    study["seeds"] = [0]
    study["arms"] = {"cot": {"set": {"mode": "cot_train"}}, "hidden": {"set": dict(COCONUT)}}
    return study


@pytest.mark.parametrize("spec", ["only(6, mean)", "extend(7)", "transplant", "swap(5)", "mean_by_step", "zero"])
def test_what_an_intervention_needs_is_there(thinking, written, spec, capsys):
    thinking["interventions"] = [spec]
    assert main(["study", str(written()), "--plan"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"interventions": ["only(9, mean)"]}, "only(9, mean) needs 9 thoughts, and no question has more than 6"),
        ({"interventions": ["extend(3)"]}, "extend(3) adds none to 6 thoughts"),
        ({"interventions": ["transplant"], "fewer": 1}, "transplant finds no donor for question '0'"),
        ({"interventions": ["other_input(blank)"]}, "is about images, and question '0' has none"),
        ({"interventions": ["mean"], "set": {"coconut.thoughts": "pause"}}, "mean needs thoughts that a model thinks"),
        ({"interventions": ["mean"], "set": {"coconut.c_thought": 0}}, "mean has no thoughts to change"),
        ({"interventions": ["mean"], "intervened": "cot"}, "arms.cot on tests.val, with interventions: "),
    ],
)
def test_an_impossible_intervention_is_found_before_the_first_run(thinking, written, capsys, change, expected):
    thinking["interventions"] = change["interventions"]
    thinking["arms"]["hidden"]["set"] = COCONUT | change.get("set", {})
    if "intervened" in change:
        thinking["arms"]["cot"]["intervened"] = True
    if "fewer" in change:
        thinking["tests"]["val"]["set"]["max_val_samples"] = change["fewer"]
    for option in ([], ["--plan"]):
        assert main(["study", str(written()), *option]) == 1
        message = capsys.readouterr().err
        assert expected in message and "nothing was started" in message and not started()


@pytest.mark.parametrize(
    ("role", "keys", "does"),
    [
        ("pause", {}, "thinks thoughts of its own"),
        ("no_thoughts", {}, "thinks thoughts of its own"),
        ("hidden", {"coconut.thoughts": "pause"}, "is fed what is no thought"),
        ("borrowed", {"coconut.thoughts": "noise"}, "is fed what is no thought"),
        ("hidden", {"coconut.thoughts": "borrowed"}, "is fed another question's thoughts"),
        ("hidden", {"coconut.c_thought": 0}, "has neither thoughts nor the steps"),
        ("direct", {"mode": "cot_train", "coconut.enabled": False}, "writes its steps"),
        ("cot", {"mode": "vanilla_train", "coconut.enabled": False}, "answers at once"),
        ("hidden", {"coconut.thoughts": "detached"}, ""),
        ("hidden", {"mode": "train", "method": "c_mtp"}, ""),
        ("pause", {"coconut.thoughts": "pause"}, ""),
        ("borrowed", {"coconut.thoughts": "borrowed"}, ""),
        ("no_thoughts", {"mode": "train", "method": "no_markers"}, ""),
    ],
)
def test_an_arm_is_what_its_role_says(thinking, written, capsys, role, keys, does):
    """Else a forgotten key would have the rule read thoughts as pauses."""
    thinking["arms"] = {"arm": {"set": COCONUT | keys, "role": role}}
    assert main(["study", str(written()), "--plan"]) == (1 if does else 0)
    message = capsys.readouterr().err
    assert not does or f"arms.arm: its role is {role}, whose model " in message
    assert not does or f"but this one {does}: change what it sets, or its role" in message


def test_the_rule_reads_no_questions_that_show_nothing(study, written, capsys):
    study["seeds"], study["arms"], study["tests"]["far"] = [0], {"direct": {}}, {"set": {}, "out_of_distribution": True}
    for told in (
        "tests.far: is out of distribution, and asks the same as tests.val, which is not",
        "tests.far: asks what direct is trained on, ",
        "",
    ):
        assert main(["study", str(written()), "--plan"]) == (1 if told else 0)
        assert told in capsys.readouterr().err
        study["tests"]["far"]["set"]["val_path"] = "train.json" if "same as" in told else "other.json"
    study["tests"]["val"]["set"]["val_path"] = "./train.json"
    assert main(["study", str(written()), "--plan"]) == 1
    assert "tests.val: asks what direct is trained on, " in capsys.readouterr().err
    study["tests"] = {"held_out": {"set": {}}, "seen": {"set": {"val_path": "train.json"}}}
    assert main(["study", str(written()), "--plan"]) == 0


@pytest.mark.parametrize(
    ("where", "keys", "expected"),
    [
        ("tests", {"val_path": "nope.json"}, "arms.hidden on tests.val: val_path: there is no nope.json"),
        ("tests", {"data_dir": "nowhere"}, "tests.val: data_dir: there is no folder nowhere"),
        ("arms", {"train_path": "nope.json"}, "arms.hidden: train_path: there is no nope.json"),
        ("arms", {"train_path": "mixed.yaml"}, "arms.hidden: train_path: there is no nope.json"),
        ("arms", {"val_path": "nope.json"}, "arms.hidden: val_path: there is no nope.json"),
        ("arms", {"model_id": "./nope"}, "arms.hidden: model_id: there is no ./nope"),
        ("arms", {"model_id": "models/nope"}, "arms.hidden: model_id: there is no models/nope"),
        ("arms", {"load_model_path": "/none/at/all"}, "arms.hidden: load_model_path: there is no /none/at/all"),
        ("arms", {"deepspeed": "none.json"}, "arms.hidden: deepspeed: there is no none.json"),
        ("arms", {"model_id": "owner/model", "train_path": "hf://owner/name?split=train"}, ""),
        ("arms", {"train_path": "*.json"}, ""),
    ],
)
def test_local_files_must_be_there(thinking, written, capsys, where, keys, expected):
    Path("models").mkdir()
    Path("mixed.yaml").write_text("- {path: train.json}\n- {path: nope.json}\n")
    thinking[where]["val" if where == "tests" else "hidden"]["set"] |= keys
    code = main(["study", str(written()), "--only", "hidden/0", "--launcher", "false"])
    message = capsys.readouterr().err
    assert code == 1 and ("nothing was started" in message) == bool(expected) and expected in message


def test_what_many_runs_miss_is_said_once(thinking, written, capsys):
    for arm in thinking["arms"].values():
        arm["set"]["model_id"] = "./nope"
    assert main(["study", str(written()), "--plan"]) == 1
    told = capsys.readouterr().err.splitlines()[1:]
    assert told == ["  arms.cot: model_id: there is no ./nope (and so for 3 more)"]


def test_what_is_done_is_not_looked_at_again(study, written):
    """The records may have gone since."""
    study["seeds"], study["arms"] = [0], {"direct": {}}
    assert main(["study", str(written())]) == 0
    Path("val.json").unlink()
    assert main(["study", str(written())]) == 0
    assert json.loads(Path("studies/tiny/study.json").read_text())["runs"]
