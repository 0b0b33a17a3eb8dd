"""What the start and the commands know of a stream, by reading little of it."""

import json
import shutil
from contextlib import nullcontext

import pytest
from homes import make_home

from multicoco.config import load_config
from multicoco.data.sources import load_of_run, pieces
from multicoco.data.sources.location import locate
from multicoco.data.stream import StreamedExamples
from multicoco.engine import streaming
from multicoco.engine.keeping import folder_of
from multicoco.engine.records import at_hand, load_training_records
from multicoco.engine.streaming import open_stream, stream_hash
from multicoco.errors import UserError
from multicoco.planning.sample import first_of_run
from multicoco.preview import preview
from multicoco.study.plan import steps_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("streaming"), 12, 0, "mode: cot_train\nstreaming: true\nbatch_size: 4\n")
    scenes = home / "scenes"
    records = json.loads((scenes / "aokvqa_v1p0_train.json").read_text())
    for name, some in (("a-0", records[:5]), ("a-1", records[5:])):
        (scenes / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in some))
    return home


@pytest.fixture
def home(made, tmp_path):
    return shutil.copytree(made, tmp_path / "home")


def config_of(home, *settings):
    places = (f"output_dir={home}/runs", f"data_dir={home}/scenes", "val_path=null", "train_path=a-*.jsonl")
    return load_config(home / "run.yaml", [*places, *settings])


@pytest.mark.parametrize("limit", ["null", "7"])
def test_its_examples_are_those_that_are_read_without(home, limit):
    config = config_of(home, f"max_train_samples={limit}")
    stream = load_training_records(config)
    assert isinstance(stream, StreamedExamples)
    expected = load_of_run(config, "aokvqa_v1p0_train.json", config.max_train_samples)
    assert [*stream] == at_hand(config, stream) == expected


def test_lines_are_counted_once_by_all_ranks_together(home, monkeypatch):
    config = config_of(home)
    monkeypatch.setattr(streaming, "world_size", lambda: 2)
    told = []
    for rank in (0, 1):
        monkeypatch.setattr(streaming, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(streaming, "gather", lambda own: told.append(own) or [*told, own])
        with pytest.raises(KeyError) if rank == 0 else nullcontext():
            assert len(open_stream(config, folder_of(config))) == 12
    assert [len(own) for own in told] == [1, 1]
    monkeypatch.undo()
    monkeypatch.setattr(pieces, "_lines", None)
    assert len(load_training_records(config)) == 12
    monkeypatch.undo()
    with (home / "scenes" / "a-1.jsonl").open("a") as file:
        file.write("{}\n")
    assert len(load_training_records(config)) == 13


def test_what_is_wrong_with_the_first_records_is_told_before_training(home):
    file = home / "scenes" / "a-1.jsonl"
    file.write_text(file.read_text().replace('"question"', '"asked"', 1))
    config = config_of(home)
    with pytest.raises(UserError, match=r"(?s)1 bad of 12 records.*a-1.jsonl: record 0 .*'question' must be text"):
        at_hand(config, load_training_records(config))
    assert len(at_hand(config_of(home, "on_bad_record=skip"), load_training_records(config))) == 11


def test_files_that_are_others_have_another_hash(home):
    scenes = home / "scenes"
    location, seen = locate(scenes, "a-*.jsonl"), set()
    seen.add(stream_hash(location))
    shutil.copytree(scenes, home / "copy")
    assert stream_hash(locate(home / "copy", "a-*.jsonl")) in seen  # wherever they lie
    content = (scenes / "a-0.jsonl").read_text()
    for changed in (content.replace("tile", "tail", 1), content + "\n"):
        (scenes / "a-0.jsonl").write_text(changed)
        seen.add(stream_hash(location))
    (scenes / "a-1.jsonl").rename(scenes / "a-2.jsonl")
    seen.add(stream_hash(location))
    assert len(seen) == 4


def test_commands_read_the_first_records_alone(home):
    config = config_of(home, "num_epochs=3")
    text = "\n".join(preview(config, 4, colours=False))
    assert "12 records: 4 examples, 0 bad, the other 8 not read (limit 4)" in text
    assert steps_of(config, 1) == 9 and len(first_of_run(config, config.train_path)) == 12
    (home / "scenes" / "a-0.jsonl").unlink()
    (home / "scenes" / "a-1.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no records"):
        steps_of(config, 1)
