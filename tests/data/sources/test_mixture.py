import json
from dataclasses import replace

import pytest

from multicoco.config import RunConfig
from multicoco.data.example import Example
from multicoco.data.sources import load_of_run, read_of_run
from multicoco.data.sources.location import locate
from multicoco.data.sources.mixture import read_parts, weighted, with_own_ids
from multicoco.engine.resume import data_hash
from multicoco.errors import UserError

EXAMPLES = [Example(str(i), f"Q{i}?", (), (), (), "A", None) for i in range(6)]


@pytest.fixture
def mixed(tmp_path):
    """Writes a mixture over a.json (4 records, ids 0 to 3) and b.json (2, ids 0 and 1, in columns), and a config."""
    (tmp_path / "sets").mkdir()
    a = [{"id": i, "question": f"a{i}?", "steps": "One. Two.", "answer": str(i)} for i in range(4)]
    b = [{"id": i, "prompt": f"b{i}?", "cot": "One.\nTwo.", "label": "x"} for i in range(2)]
    for name, records in (("a", a), ("b", b)):
        (tmp_path / "sets" / f"{name}.json").write_text(json.dumps(records))

    def write(text: str, **keys) -> RunConfig:
        (tmp_path / "sets" / "mix.yaml").write_text(text)
        keys = {"data_dir": str(tmp_path), "train_path": "sets/mix.yaml"} | keys
        return RunConfig(mode="cot_train", name="r", model_id="m", **keys)

    return write


B = "{path: b.json, columns: {question: prompt, steps: cot, answer: label}, steps_from: lines, answer_type: text"


def test_each_set_is_read_in_its_own_way_and_as_often_as_its_weight_says(mixed):
    config = mixed(f"- {{path: a.json, weight: 0.5, answer_type: number}}\n- {B}, weight: 2}}\n")
    examples = load_of_run(config, "sets/mix.yaml", None)
    assert [e.question for e in examples] == ["a0?", "a2?", "b0?", "b1?", "b0?", "b1?"]
    assert [e.judge for e in examples] == ["number"] * 2 + ["text"] * 4
    assert {e.steps for e in examples} == {("One.", "Two.")}
    assert len({e.id for e in examples}) == 6
    assert [e.question for e in load_of_run(config, "sets/mix.yaml", 3)] == ["a0?", "a2?", "b0?"]


def test_what_is_bad_is_told_by_its_file(mixed, tmp_path):
    config = mixed("- {path: a.json}\n- {path: b.json}\n")
    with pytest.raises(UserError, match=r"b\.json: 2 bad of 2 records"):
        load_of_run(config, "sets/mix.yaml", None)
    read = read_of_run(config, "sets/mix.yaml", None)
    assert (len(read.examples), read.checked, read.records) == (4, 6, 6)
    assert len(read.problems) == 2 and all("b.json: record" in problem for problem in read.problems)


def test_what_a_set_does_not_say_is_as_the_config_says(mixed):
    config = mixed("- {path: a.json}\n", steps_from="rationales")
    assert load_of_run(config, "sets/mix.yaml", None)[0].steps == ("One. Two.",)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (1, "012345"),
        (0.5, "024"),
        (1 / 3, "03"),
        (0.01, "0"),
        (2, "012345012345"),
        (1.5, "012345024"),
        (0.9999, "012345"),
    ],
)
def test_weights(weight, expected):
    mixed = weighted(EXAMPLES, weight)
    assert "".join(e.question[1] for e in mixed) == expected
    assert len({e.id for e in mixed}) == len(mixed) and {e.id for e in mixed[:1]} == {"0"}


def test_ids_of_several_sets_are_different():
    twice = [*EXAMPLES[:2], *EXAMPLES[:2], replace(EXAMPLES[0], id="0#2")]
    assert [e.id for e in with_own_ids(twice)] == ["0", "1", "0#2", "1#2", "0#2#2"]


def test_a_run_notices_that_a_set_of_it_has_changed(mixed, tmp_path):
    mixed("- {path: a.json}\n- {path: b.json}\n")
    location = locate(tmp_path, "sets/mix.yaml")
    before = data_hash(location)
    assert data_hash(location) == before
    (tmp_path / "sets" / "b.json").write_text("[]")
    after = data_hash(location)
    mixed("- {path: a.json}\n- {path: b.json, weight: 2}\n")
    assert len({before, after, data_hash(location)}) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a mixture is a list"),
        ("path: a.json", "a mixture is a list"),
        ("[", "not valid YAML"),
        ("- a.json", "data set 0: it: "),
        ("- {weight: 2}", "data set 0: path: "),
        ("- {path: a.json}\n- {path: b.json, weight: 0}", "data set 1: weight: "),
        ("- {path: a.json, wieght: 1}", "data set 0: wieght: .*the keys are path, weight"),
        ("- {path: a.json, columns: {prompt: x}}", "data set 0: columns.prompt: "),
        ("- {path: a.json, steps_from: words}", "data set 0: steps_from: "),
        ("- {path: mix.yaml}", "a mixture itself"),
        ("- {path: 'a.json?split=x'}", "a.json"),
        ("- {path: a.json, source: nosuch}", "'nosuch' is none of the sources"),
    ],
)
def test_a_mixture_of_another_form_is_named(mixed, text, reason):
    config = mixed(text)
    with pytest.raises(UserError, match=reason):
        load_of_run(config, "sets/mix.yaml", None)


def test_a_mixture_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        read_parts(locate(tmp_path, "none.yaml"))
