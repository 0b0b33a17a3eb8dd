"""Large sets are kept, small ones held: either way a run is trained on the same examples, and told the same."""

import json
import shutil

import pytest
from homes import make_home

from multicoco.config import load_config
from multicoco.data.kept import KeptExamples
from multicoco.data.sources import load_of_run
from multicoco.engine import records
from multicoco.engine.records import folder_of, load_training_records, without_answer
from multicoco.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("records"), 24, 0, "mode: cot_train\nnum_epochs: 1\n")


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "KEPT_FROM", 10)
    monkeypatch.setattr(records, "_ROUND", 7)
    monkeypatch.setattr(records, "_BLOCK", 2)
    return shutil.copytree(made, tmp_path / "home")


def config_of(home, *settings):
    return load_config(
        home / "run.yaml", [f"output_dir={home}/runs", f"data_dir={home}/scenes", "val_path=null", *settings]
    )


def told(load) -> str:
    with pytest.raises(UserError) as error:
        load()
    return str(error.value)


@pytest.mark.parametrize("limit", ["null", "5", "12", "100"])
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
        monkeypatch.setattr(records, name, None)
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


@pytest.mark.parametrize("limit", ["null", "9"])
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


@pytest.mark.parametrize("n_ranks", [1, 3])
@pytest.mark.parametrize("kept", [True, False])
def test_those_without_an_answer_are_found_by_all_ranks_together(home, monkeypatch, n_ranks, kept):
    file = home / "scenes" / "aokvqa_v1p0_train.json"
    content = json.loads(file.read_text())
    for place in (3, 4, 17):
        content[place] = {"question": "Q?", "steps": None, "answer": None, "id": f"q{place}"}
    file.write_text(json.dumps(content))
    config = config_of(home)
    examples = load_training_records(config) if kept else load_of_run(config, config.train_path, None)
    own, ranks = [], iter(range(n_ranks))
    monkeypatch.setattr(records, "world_size", lambda: n_ranks)
    monkeypatch.setattr(records, "rank", lambda: next(ranks))
    monkeypatch.setattr(records, "gather", lambda places: own.append(places) or own)
    found = [without_answer(examples) for _ in range(n_ranks)]
    assert [e.id for e in found[-1]] == ["q3", "q4", "q17"] and len(own) == n_ranks


def test_mixtures_and_small_sets_are_held(home, monkeypatch):
    (home / "scenes" / "mixed.yaml").write_text("- {path: aokvqa_v1p0_train.json, weight: 2}\n")
    assert isinstance(load_training_records(config_of(home, "train_path=mixed.yaml")), list)
    monkeypatch.setattr(records, "KEPT_FROM", 25)
    assert isinstance(load_training_records(config_of(home)), list)
    assert not folder_of(config_of(home)).exists()
