"""Large sets are kept, small ones held: either way a run is trained on the same examples, and told the same."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from homes import make_home
from PIL import Image

from multicoco.config import load_config
from multicoco.data import verified
from multicoco.data.kept import UNANSWERED, Kept, KeptExamples, KeptMixture, KeptRecords, picked
from multicoco.data.sources import load_of_run
from multicoco.engine import keeping
from multicoco.engine.keeping import folder_of
from multicoco.engine.records import lengths_file, load_records, load_training_records, without_answer
from multicoco.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("records"), 24, 0, "mode: cot_train\nnum_epochs: 1\n")


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "KEPT_FROM", 10)
    monkeypatch.setattr(keeping, "_ROUND", 7)
    monkeypatch.setattr(keeping, "_BLOCK", 2)
    return shutil.copytree(made, tmp_path / "home")


def config_of(home, *settings):
    return load_config(
        home / "run.yaml", [f"output_dir={home}/runs", f"data_dir={home}/scenes", "val_path=null", *settings]
    )


def told(load) -> str:
    with pytest.raises(UserError) as error:
        load()
    return str(error.value)


@pytest.mark.parametrize("limit", ["null", "10", "12", "100"])
def test_kept_examples_are_those_that_are_read(home, limit):
    config = config_of(home, f"max_train_samples={limit}")
    expected = load_of_run(config, config.train_path, config.max_train_samples)
    for _ in range(2):
        found = load_training_records(config)
        assert isinstance(found, KeptExamples) and [*found] == expected
    assert {path.suffix for path in folder_of(config).iterdir()} == {".examples", ".npy"}


def test_a_second_start_reads_and_decodes_nothing(home, monkeypatch):
    config = config_of(home)
    first = [*load_training_records(config)]
    for name in ("keep", "open_records", "parse_records"):
        monkeypatch.setattr(keeping, name, None)
    monkeypatch.setattr("multicoco.data.verified.load_image", None)
    assert [*load_training_records(config)] == first


@pytest.mark.parametrize("how", ["record", "key"])
def test_other_records_or_another_way_to_read_them_are_read_anew(home, how):
    load_training_records(config_of(home))
    file = home / "scenes" / "aokvqa_v1p0_train.json"
    if how == "record":
        content = json.loads(file.read_text())
        content[3]["rationales"] = ["Another one."]
        file.write_text(json.dumps(content))
    config = config_of(home, *(["steps_from=rationales"] if how == "key" else []))
    assert [*load_training_records(config)] == load_of_run(config, config.train_path, None)


@pytest.mark.parametrize("limit", ["null", "11"])
def test_bad_records_and_images_are_told_and_left_out_as_ever(home, limit):
    file = home / "scenes" / "aokvqa_v1p0_train.json"
    content = json.loads(file.read_text())
    content[2]["question"] = ""
    file.write_text(json.dumps(content))
    images = [example.image for example in load_of_run(config_of(home, "on_bad_record=skip"), file.name, None)]
    images[7].write_bytes(images[7].read_bytes()[:100])
    images[20].unlink()
    settings = [f"max_train_samples={limit}"]
    loads = [
        lambda config: load_training_records(config),
        lambda config: load_of_run(config, config.train_path, config.max_train_samples),
    ]
    mine, theirs = (told(lambda load=load: load(config_of(home, *settings))) for load in loads)
    assert mine == theirs and f"{3 if limit == 'null' else 2} bad of" in mine
    mine, theirs = (load(config_of(home, "on_bad_record=skip", *settings)) for load in loads)
    assert [*mine] == theirs


@pytest.mark.parametrize("kept", [True, False])
def test_those_without_an_answer_are_found_and_kept_ones_not_read_for_it(home, monkeypatch, kept):
    file = home / "scenes" / "aokvqa_v1p0_train.json"
    content = json.loads(file.read_text())
    for place in (3, 4, 17):
        content[place] = {"question": "Q?", "steps": None, "answer": None, "id": f"q{place}"}
    file.write_text(json.dumps(content))
    config = config_of(home)
    examples = load_training_records(config) if kept else load_of_run(config, config.train_path, None)
    read = []
    once = KeptRecords.__getitem__
    monkeypatch.setattr(KeptRecords, "__getitem__", lambda records, place: read.append(place) or once(records, place))
    assert [e.id for e in without_answer(examples)] == ["q3", "q4", "q17"] and read == [3, 4, 17] * kept


def test_a_second_start_reads_only_records_with_images_and_bad_ones(home, monkeypatch):
    file = home / "scenes" / "aokvqa_v1p0_train.json"
    content = json.loads(file.read_text())
    for place in range(20):
        content[place] = {"question": "Q?", "answer": "a", "id": f"q{place}"}
    content[5] = {"question": "", "answer": "a"}
    file.write_text(json.dumps(content))
    config, read = config_of(home, "on_bad_record=skip"), []
    first = [*load_training_records(config)]
    once = KeptRecords.__getitem__
    monkeypatch.setattr(KeptRecords, "__getitem__", lambda records, place: read.append(place) or once(records, place))
    again = load_training_records(config)
    assert sorted(read) == [5, *range(20, 24)] and [*again] == first and len(first) == 23


MIXTURE = """\
- {path: aokvqa_v1p0_train.json, weight: 2.5}
- {path: few.json, weight: 0.5, direct_answers: true}
- {path: lines.jsonl, steps_from: lines}
"""


def mix(home) -> None:
    """A mixture of which some ids are in all of its sets."""
    scenes = home / "scenes"
    (scenes / "mixed.yaml").write_text(MIXTURE)
    content = json.loads((scenes / "aokvqa_v1p0_train.json").read_text())
    (scenes / "few.json").write_text(json.dumps(content[:7]))
    (scenes / "lines.jsonl").write_text("".join(json.dumps(record) + "\n" for record in content[3:6]))


@pytest.mark.parametrize("limit", [None, 20, 500])
def test_a_large_mixture_is_kept_and_the_same_as_one_that_is_held(home, monkeypatch, limit):
    mix(home)
    config = config_of(home, "train_path=mixed.yaml", f"max_train_samples={'null' if limit is None else limit}")
    expected = load_of_run(config, "mixed.yaml", limit)
    found = load_training_records(config)
    assert isinstance(found, KeptMixture) and [*found] == expected and len({e.id for e in found}) == len(expected)
    if limit != 20:
        assert any("*2" in e.id for e in found) and any("#2" in e.id for e in found)
    for name in ("keep", "open_records", "parse_records", "numbers_of"):
        monkeypatch.setattr(keeping, name, None)
    monkeypatch.setattr("multicoco.data.verified.load_image", None)
    again = load_training_records(config)
    assert [*again] == expected and again[-1] == expected[-1] and again[2:4] == expected[2:4]
    assert not (again.flags & UNANSWERED).any() and (again.flags > 0).tolist() == [bool(e.images) for e in expected]
    places = np.array([3, 17, 0])
    assert [*picked(again, places)] == [expected[place] for place in places]
    assert [*pickle.loads(pickle.dumps(again))] == expected
    with pytest.raises(IndexError):
        again[len(expected)]


def test_bad_records_of_a_mixture_are_told_and_left_out_as_ever(home):
    mix(home)
    [few, lines] = home / "scenes" / "few.json", home / "scenes" / "lines.jsonl"
    few.write_text(few.read_text().replace('"question"', '"asked"', 2))
    for loads in (load_training_records, lambda config: load_of_run(config, "mixed.yaml", None)):
        message = told(lambda loads=loads: loads(config_of(home, "train_path=mixed.yaml")))
        assert f"{few}: 2 bad of 7 records" in message and str(lines) not in message
    config = config_of(home, "train_path=mixed.yaml", "on_bad_record=skip")
    assert [*load_training_records(config)] == load_of_run(config, "mixed.yaml", None)


def test_questions_asked_openly_are_kept_so(home):
    config = config_of(home, "direct_answers=true")
    found = load_training_records(config)
    assert isinstance(found, KeptExamples) and [*found] == load_of_run(config, config.train_path, None)
    assert not any(e.choices for e in found) and any(e.choices for e in load_training_records(config_of(home)))
    file = home / "scenes" / "aokvqa_v1p0_train.json"
    content = json.loads(file.read_text())
    content[5]["direct_answers"] = []
    file.write_text(json.dumps(content))
    mine, theirs = (
        told(lambda load=load: load(config))
        for load in (load_training_records, lambda config: load_of_run(config, config.train_path, None))
    )
    assert mine == theirs and "has no direct answers" in mine


def test_small_sets_and_the_first_of_large_ones_are_held(home, monkeypatch):
    config = config_of(home)
    assert isinstance(load_records(config, config.train_path, 9), list)
    monkeypatch.setattr(keeping, "KEPT_FROM", 25)
    assert isinstance(load_training_records(config), list)
    assert [path.name for path in folder_of(config).iterdir()] == [keeping.IMAGES]
    mix(home)
    assert isinstance(load_training_records(config_of(home, "train_path=mixed.yaml")), KeptMixture)  # all together


def test_images_of_a_small_set_are_decoded_once(home, monkeypatch, caplog):
    monkeypatch.setattr(keeping, "KEPT_FROM", 25)
    config, decoded = config_of(home, "on_bad_record=skip"), []
    load = verified.load_image
    monkeypatch.setattr(verified, "load_image", lambda image: (decoded.append(image.name), load(image)))
    images = [example.image for example in load_training_records(config)]
    assert sorted(decoded) == sorted(path.name for path in images) and len(images) == 24
    images[7].write_bytes(images[7].read_bytes()[:100])
    for _ in range(2):  # what is bad is not remembered
        decoded.clear()
        assert [example.image for example in load_training_records(config)] == images[:7] + images[8:]
        assert decoded == [images[7].name]


def test_validation_records_are_kept_too(home):
    config = config_of(home, "val_path=aokvqa_v1p0_train.json")
    assert isinstance(load_records(config, config.val_path, None), KeptExamples)


def test_lengths_are_remembered_of_the_same_examples_alone(home):
    mix(home)
    config, mixed = config_of(home), config_of(home, "train_path=mixed.yaml")
    all_of, mixture = load_training_records(config), load_training_records(mixed)
    assert isinstance(all_of, Kept) and isinstance(mixture, Kept)
    some = [all_of.picked(np.arange(1, 5)), all_of.picked(np.arange(4)), mixture.picked(np.arange(4)), mixture]
    files = [lengths_file(config, examples, "a") for examples in [all_of, *some]]
    assert len({*files}) == 5 and lengths_file(config, all_of, "a") == files[0] != lengths_file(config, all_of, "b")
    assert lengths_file(config, [*all_of], "a") is None
    files[0].write_bytes(b"1234")
    image = all_of[3].image
    os.utime(image, (1, 1))
    load_training_records(config)
    assert files[0].exists()
    Image.new("RGB", (90, 60), "red").save(image)  # which may be written with more tokens
    load_training_records(config)
    assert not files[0].exists()
