import csv
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


@pytest.mark.parametrize(("name", "separator"), [("f.csv", ","), ("F.CSV", ","), ("f.tsv", "\t")])
def test_rows_of_csv_are_the_records_of_the_same_texts(tmp_path, name, separator):
    records = [
        {
            "question": 'Is it "a, b"?\nOr c?',
            "choices": ["a, b", "c"],
            "steps": "So. Then.",
            "answer": "c",
            "note": None,
        },
        {"question": "2\u2028?", "choices": None, "steps": ["So."], "answer": "[no list", "note": "x\ty" * 50_000},
    ]
    with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, delimiter=separator)
        rows.writerow(records[0])
        for record in records:
            cells = [json.dumps(value) if isinstance(value, list) else value for value in record.values()]
            rows.writerow(cells)
        file.write("\r\n")
    assert read_records(tmp_path / name) == records
    columns = {"question": "question"}
    first, second = load_examples(tmp_path / name, tmp_path, columns=columns)
    assert first.answer_index == 1 and first.steps == ("So.", "Then.") and second.answer == "[no list"


def test_a_row_of_csv_with_another_number_of_cells_is_one_bad_record(tmp_path):
    (tmp_path / "f.csv").write_text("question,answer\nQ?,a\nOh, well?,b\nR?,c\n")
    with pytest.raises(UserError, match=r"1 bad of 3 records\n  record 1: the row up to line 3 has 3 cells where"):
        load_examples(tmp_path / "f.csv", tmp_path)
    assert len(load_examples(tmp_path / "f.csv", tmp_path, on_bad_record="skip")) == 2


NO_TABLES = {
    "": "must hold a row of names",
    "question,answer\n": "one record a row after it",
    "a,a\n1,2\n": "two columns have the same name",
    'question\n"Q?" x\n': "line 2 is not valid CSV",
}


@pytest.mark.parametrize(("content", "reason"), NO_TABLES.items())
def test_what_is_no_csv_is_named(tmp_path, content, reason):
    (tmp_path / "f.csv").write_text(content)
    with pytest.raises(UserError, match=rf"f\.csv: .*{reason}"):
        read_records(tmp_path / "f.csv")
