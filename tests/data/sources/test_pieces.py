"""Files in pieces hold the records that Hugging Face datasets reads from them, wherever they are cut."""

import json

import pytest

from multicoco.data.sources.location import Location, locate
from multicoco.data.sources.pieces import LINES, Unreadable, files_of, pieces_of, read_piece
from multicoco.errors import UserError

datasets = pytest.importorskip("datasets")
RECORDS = [
    {"question": f"q{i}", "steps": [f"step {j}" for j in range(i % 3)], "answer": None if i == 4 else str(i)}
    for i in range(25)
]


def all_of(path: str) -> list:
    pieces = pieces_of(path)
    read = [read_piece(path, pieces, place) for place in range(len(pieces.records))]
    assert [len(piece) for piece in read] == pieces.records.tolist()
    return [record for piece in read for record in piece]


@pytest.mark.parametrize("form", ["parquet", "arrow stream", "arrow file", "saved", "saved dict", "jsonl"])
def test_each_form_in_pieces_is_what_datasets_reads(tmp_path, monkeypatch, form):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = datasets.Dataset.from_list(RECORDS)
    place = tmp_path / "a"
    if form == "parquet":
        made.to_parquet(place.with_suffix(".parquet"), batch_size=10)
        place = place.with_suffix(".parquet")
    elif form.startswith("arrow"):
        import pyarrow

        table = made.data.table.combine_chunks()
        place = place.with_suffix(".arrow")
        new = pyarrow.ipc.new_stream if form.endswith("stream") else pyarrow.ipc.new_file
        with new(str(place), table.schema) as writer:
            writer.write_table(table, max_chunksize=10)
    elif form == "saved":
        made.save_to_disk(place, num_shards=3)
    elif form == "saved dict":
        datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(place)
    else:
        place = place.with_suffix(".jsonl")
        made.to_json(place)
    asked = f"{place}?split=train" if form == "saved dict" else place
    files = files_of(locate("", asked))
    assert [record for file in files for record in all_of(file)] == RECORDS
    if form in ("parquet", "arrow stream", "arrow file"):
        assert pieces_of(files[0]).records.tolist() == [10, 10, 5]
    assert len(files) == (3 if form == "saved" else 1)


def test_lines_are_cut_where_records_begin(tmp_path):
    """Blank lines are none, a line that is no JSON is one that is bad, and the last needs no end."""
    lines = [json.dumps({"i": i, "text": "\u00e9" * (i % 7)}, ensure_ascii=False) for i in range(2 * LINES + 3)]
    lines[5] = "no JSON"
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\n\n \n".join(lines).encode())
    assert pieces_of(str(file)).records.tolist() == [LINES, LINES, 3]
    read = all_of(str(file))
    assert isinstance(read[5], UserError) and "not valid JSON" in str(read[5])
    assert [r["i"] for r in read if r is not read[5]] == [i for i in range(len(lines)) if i != 5]


def test_what_lies_elsewhere_is_read_by_fsspec(monkeypatch, tmp_path):
    """As of the hub, whose answer to which files there are is stood in for."""
    import fsspec

    for name in ("b", "a"):
        datasets.Dataset.from_list(RECORDS).to_parquet(tmp_path / "x.parquet")
        with fsspec.open(f"memory://{name}.parquet", "wb") as file:
            file.write((tmp_path / "x.parquet").read_bytes())

    class Builder:
        class config:
            data_files = {"train": ["memory://b.parquet", "memory://a.parquet"], "test": []}  # noqa: RUF012

    asked = []
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *names, **keys: asked.append((names, keys)) or Builder)
    location = Location("owner/name", on_hub=True, split="train", revision="abc")
    files = files_of(location)
    assert files == ["memory://b.parquet", "memory://a.parquet"] and asked == [
        (("owner/name", None), {"revision": "abc"})
    ]
    assert [record for file in files for record in all_of(file)] == RECORDS * 2
    with pytest.raises(UserError, match=r"name one of its splits.*train, test"):
        files_of(Location("owner/name", on_hub=True))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "question,answer\n", "parquet, Arrow and JSON Lines"),
        ("a.json", '[{"question": "q"}]', "not JSON Lines"),
        ("a.json", '{"a": {"question": "q"}}', "not JSON Lines"),
        ("a.json", '{\n"question": "q"}', "not JSON Lines"),
        ("a.jsonl", '[{"question": "q"}]', "not JSON Lines"),
        ("a.yaml", "- {path: a.json}", "a mixture cannot be streamed"),
    ],
)
def test_what_cannot_be_streamed_is_refused_by_its_name(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said) as error:
        files_of(locate(tmp_path, name))
    assert name in str(error.value)


def test_lines_in_a_file_that_ends_in_json_are_lines(tmp_path):
    (tmp_path / "a.json").write_text('{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b"}\n')
    [file] = files_of(locate(tmp_path, "a.json"))
    assert [record["question"] for record in all_of(file)] == ["q", "r"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_broken_file_is_told_from_bad_records(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1 no such thing")
    with pytest.raises(Unreadable, match=name):
        pieces_of(str(tmp_path / name))
    with pytest.raises(UserError, match="no such file"):
        files_of(locate(tmp_path, "b*.parquet"))
