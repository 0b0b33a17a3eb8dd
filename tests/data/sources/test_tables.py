"""Tables hold what a JSON file of the same records holds."""

import base64
import builtins
import io
import json
import pickle
import shutil

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from multicoco.data.example import load_image
from multicoco.data.sources import load_examples
from multicoco.data.sources.location import locate
from multicoco.data.sources.tables import StoredInTable, TableRecords, open_table
from multicoco.engine.resume import data_hash
from multicoco.errors import UserError

datasets = pytest.importorskip("datasets")
import pyarrow.feather  # noqa: E402


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


COLOURS = ["red", "blue", "lime"]
RECORDS = [
    {
        "id": place + 7,
        "question": f"What is it? {place}",
        "choices": ["red", "blue", "lime"],
        "steps": ["I look."] * place,
        "answer": colour,
        "images": [picture(colour), picture("white")],
    }
    for place, colour in enumerate(COLOURS)
]
FORMS = ["x.parquet", "shard-*.parquet", "x.arrow", "x.feather", "saved", "splits?split=val", "repo?split=val"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same records in every form; with the cache of datasets in it."""
    folder = tmp_path_factory.mktemp("tables")
    datasets.disable_progress_bars()
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder / "cache"
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            **{key: datasets.Value("string") for key in ("question", "answer")},
            **{key: datasets.List(datasets.Value("string")) for key in ("choices", "steps")},
            "images": datasets.List(datasets.Image()),
        }
    )
    rows = [row | {"images": [{"bytes": image, "path": None} for image in row["images"]]} for row in RECORDS]
    table = datasets.Dataset.from_list(rows, features=features)
    other = table.select([0])
    table.to_parquet(folder / "x.parquet")
    for place in range(2):
        table.select(range(2 * place, min(2 * place + 2, 3))).to_parquet(folder / f"shard-{place}.parquet")
    table.save_to_disk(folder / "saved")
    shutil.copy(folder / "saved" / "data-00000-of-00001.arrow", folder / "x.arrow")
    pyarrow.feather.write_feather(table.data.table.combine_chunks(), str(folder / "x.feather"))
    datasets.DatasetDict({"train": other, "val": table}).save_to_disk(folder / "splits")
    (folder / "repo" / "data").mkdir(parents=True)
    other.to_parquet(folder / "repo" / "data" / "train-00000-of-00001.parquet")
    table.to_parquet(folder / "repo" / "data" / "val-00000-of-00001.parquet")
    yield folder
    datasets.config.HF_DATASETS_CACHE = before


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_examples_of_the_json_file(folder, form, tmp_path):
    as_text = [row | {"images": [base64.b64encode(image).decode() for image in row["images"]]} for row in RECORDS]
    (tmp_path / "x.json").write_text(json.dumps(as_text))
    examples = load_examples(locate(folder, form), folder)
    for example, expected in zip(examples, load_examples(tmp_path / "x.json", tmp_path), strict=True):
        assert (example.id, example.question, example.choices) == (expected.id, expected.question, expected.choices)
        assert (example.steps, example.answer_index) == (expected.steps, expected.answer_index)
        assert [load_image(image).tobytes() for image in example.images] == [
            load_image(image).tobytes() for image in expected.images
        ]


def test_pictures_stay_in_the_table_until_they_are_wanted(folder):
    example = load_examples(locate(folder, "x.parquet"), folder)[1]
    assert all(isinstance(image, StoredInTable) for image in example.images)
    sent = pickle.dumps(example)
    assert len(sent) < 1500
    open_table.cache_clear()  # as in another process
    assert pickle.loads(sent).images[0].read() == picture("blue")


def test_workers_of_a_loader_read_pictures_too(folder):
    images = [example.images[0] for example in load_examples(locate(folder, "x.parquet"), folder)]
    loader = DataLoader(images, num_workers=1, batch_size=None, collate_fn=load_image)
    assert [image.tobytes() for image in loader] == [load_image(picture(colour)).tobytes() for colour in COLOURS]


def test_a_broken_picture_is_named_with_its_record(folder, tmp_path):
    good = {"bytes": picture("red"), "path": None}
    rows = [{"question": "Q?", "answer": "A", "image": image} for image in (good, {"bytes": b"no", "path": None})]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "y.parquet")
    with pytest.raises(UserError, match=r"1 bad of 2 records\n  record 1: the image of record 1 in .*y\.parquet"):
        load_examples(tmp_path / "y.parquet", tmp_path)


def test_paths_in_a_table_are_of_the_image_folder(tmp_path, folder):
    (tmp_path / "a.png").write_bytes(picture("red"))
    rows = [{"question": "Q?", "answer": "A", "image": {"bytes": None, "path": "a.png"}}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "z.parquet")
    assert load_examples(tmp_path / "z.parquet", tmp_path)[0].images == (tmp_path / "a.png",)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none.parquet", "there is no such file"),
        ("broken.parquet", "broken.parquet: cannot be read as a data set"),
        ("broken.arrow", "broken.arrow: cannot be read as a data set"),
        ("empty", "empty: cannot be read as a data set"),
        ("nothing.arrow", "nothing.arrow: holds no records"),
        ("splits", r"has the splits train, val: name one, .*splits\?split=\.\.\."),
        ("splits?split=test", "no split 'test', there are train, val"),
        ("saved?split=test", "no splits"),
        ("saved?name=x", "leave name= out"),
        ("repo?split=test", "test"),
        ("repo?name=x", "x"),
    ],
)
def test_what_is_no_table_is_named(folder, path, reason):
    for name in ("broken.parquet", "broken.arrow"):
        (folder / name).write_bytes(b"ARROW1 and nothing more")
    (folder / "empty").mkdir(exist_ok=True)
    pyarrow.feather.write_feather(pyarrow.table({"question": [], "answer": []}), str(folder / "nothing.arrow"))
    with pytest.raises(UserError, match=reason) as caught:
        load_examples(locate(folder, path), folder)
    assert str(folder / path.partition("?")[0]) in str(caught.value)


def test_a_set_that_the_hub_does_not_give_is_named(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'a/b' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"hf://a/b\?split=train: .*Couldn't reach 'a/b'"):
        TableRecords(locate("", "hf://a/b?split=train"))


def test_the_hub_is_asked_for_configuration_split_and_revision(folder, monkeypatch):
    asked = []
    table = datasets.load_from_disk(folder / "saved")
    monkeypatch.setattr(datasets, "load_dataset", lambda *place, **how: asked.append((*place, how)) or table)
    assert len(TableRecords(locate(folder, "hf://a/b?split=train&name=full&revision=1a2b"))) == 3
    assert asked == [("a/b", "full", {"split": "train", "revision": "1a2b"})]


def test_without_datasets_the_message_says_what_to_install(monkeypatch, folder):
    real = builtins.__import__

    def without(name, *arguments, **more):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    open_table.cache_clear()
    with pytest.raises(UserError, match=r"pip install multicoco\[data\]"):
        load_examples(folder / "x.parquet", folder)


def test_a_run_notices_that_its_data_has_changed(folder, tmp_path):
    hashes = [data_hash(locate(folder, form)) for form in [*FORMS, "splits?split=train"]]
    assert len(set(hashes)) == len(hashes)
    assert hashes == [data_hash(locate(folder, form)) for form in [*FORMS, "splits?split=train"]]
    shutil.copytree(folder / "saved", tmp_path / "saved")
    assert data_hash(locate(tmp_path, "saved")) == data_hash(locate(folder, "saved"))
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert data_hash(locate(tmp_path, "saved")) != data_hash(locate(folder, "saved"))
    with pytest.raises(UserError, match="no such file"):
        data_hash(locate(folder, "none-*.parquet"))
