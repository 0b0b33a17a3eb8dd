import json

import pytest

from multicoco.data.sources import load_examples
from multicoco.data.sources.files import read_records
from multicoco.errors import UserError

RECORDS = [{"question": "Q?", "steps": [], "answer": "A\u2028 b."}, {"question": "R?", "steps": [], "answer": "B."}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["f.json", "f.jsonl"])
@pytest.mark.parametrize("form", ["list", "lines", "lines with blank ones"])
def test_a_list_or_lines_whatever_the_name(tmp_path, encoding, name, form):
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    content = {
        "list": json.dumps(RECORDS),
        "lines": "\n".join(lines),
        "lines with blank ones": "\n\r\n".join([*lines, ""]),
    }
    (tmp_path / name).write_text(content[form], encoding=encoding)
    assert [*read_records(tmp_path / name)] == RECORDS


def test_one_line(tmp_path):
    (tmp_path / "f.jsonl").write_text(json.dumps(RECORDS[0]))
    assert [*read_records(tmp_path / "f.jsonl")] == RECORDS[:1]


def test_a_broken_line_is_one_bad_record(tmp_path):
    lines = [json.dumps(RECORDS[0]), '{"question": "cut', json.dumps(RECORDS[1])]
    (tmp_path / "f.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"1 bad of 3 records\n  record 1: line 2 is not valid JSON"):
        load_examples(tmp_path / "f.jsonl", tmp_path)
    assert len(load_examples(tmp_path / "f.jsonl", tmp_path, on_bad_record="skip")) == 2


def test_an_object_of_records_gives_them_their_ids(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps({"7": RECORDS[0], "8": RECORDS[1] | {"id": "own"}}))
    assert [record["id"] for record in read_records(tmp_path / "f.json")] == ["7", "own"]


def test_a_key_that_stands_twice_is_not_dropped(tmp_path):
    (tmp_path / "f.json").write_text('[{"question": "Q?", "image": "a.png", "answer": "A", "image": "b.png"}]')
    with pytest.raises(UserError, match=r"f\.json.*'image' stands twice"):
        read_records(tmp_path / "f.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "list"),
        (b"{}", "list"),
        (b"7", "list"),
        (b'{"data": []}', "list"),
        (b"[{]", "JSON"),
        (b'{"a": 1', "JSON"),
        (b'[{"a": 1}] [', "JSON"),
        (b"", "JSON"),
        (b"\xff\xfe[", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[" + b"9" * 5000 + b"]", "JSON"),
        (None, "read"),
    ],
)
@pytest.mark.parametrize("on_bad_record", ["error", "skip"])
def test_a_file_that_holds_no_records_is_named(tmp_path, content, reason, on_bad_record):
    if content is not None:
        (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"f\.json.*{reason}"):
        load_examples(tmp_path / "f.json", tmp_path, on_bad_record=on_bad_record)
