"""A stream gives the examples that reading the file gives, leaves out what is bad, and holds a few pieces."""

import json
import logging

import numpy as np
import pytest

from multicoco.data import stream as stream_module
from multicoco.data.loader import RankBatches, ReasoningDataset, make_loader
from multicoco.data.order import LaneOrder
from multicoco.data.sources import load_examples, pieces
from multicoco.data.sources.parse import ReadingOptions, RecordParser
from multicoco.data.sources.pieces import Unreadable, pieces_of
from multicoco.data.stream import Policy, StreamedExamples, TooLong
from multicoco.errors import UserError

N = 23


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "LINES", 4)


def write(folder, changed=None) -> list:
    """N records in three files; some of them are other ones."""
    records = [{"id": f"r{i}", "question": f"q{i}", "answer": str(i), "steps": [f"s{i}"]} for i in range(N)]
    records = [(changed or {}).get(i, record) for i, record in enumerate(records)]
    files = []
    for place, (start, end) in enumerate([(0, 9), (9, 10), (10, N)]):
        files.append(folder / f"{place}.jsonl")
        files[-1].write_text("".join(json.dumps(record) + "\n" for record in records[start:end]))
    return files


def open_stream(files, limit=None, **keys) -> StreamedExamples:
    parser = RecordParser(ReadingOptions(files[0].parent, columns=keys.pop("columns", None)))
    return StreamedExamples({str(file): pieces_of(str(file)) for file in files}, parser, Policy(**keys), limit)


@pytest.mark.parametrize("limit", [None, 1, 10, 11, 1000])
def test_it_has_the_examples_of_the_files(tmp_path, limit):
    files = write(tmp_path)
    expected = [example for file in files for example in load_examples(file, tmp_path)][:limit]
    stream = open_stream(files, limit)
    assert len(stream) == len(expected) == stream.pieces.sum()
    assert [*stream] == expected and stream[:3] == expected[:3] and stream[-1] == expected[-1]
    with pytest.raises(IndexError):
        stream[len(expected)]
    first = stream.first(5)
    assert first.examples == expected[:5] and (first.checked, first.records) == (min(5, len(expected)), len(expected))


def test_records_without_ids_are_told_apart_by_their_places(tmp_path):
    files = write(tmp_path, {i: {"question": "q", "answer": "a"} for i in range(N)})
    assert [example.id for example in open_stream(files)] == [str(i) for i in range(N)]


def test_questions_are_asked_without_their_choices_where_the_run_says_so(tmp_path):
    (tmp_path / "i.png").touch()
    record = {"id": "c", "question": "q", "choices": ["a", "b"], "correct_choice_idx": 0, "direct_answers": ["x", "x"]}
    record |= {"image": "i.png", "rationales": []}
    [example] = open_stream(write(tmp_path, {9: record})[1:2], openly=True)
    assert (example.choices, example.answer) == ((), "x")


def test_no_more_pieces_are_held_than_there_is_room_for(tmp_path, monkeypatch):
    stream, read = open_stream(write(tmp_path)), []
    once = stream_module.read_piece
    monkeypatch.setattr(stream_module, "read_piece", lambda *about: read.append(1) or once(*about))
    stream.room = 2
    for index in [0, 5, 1, 6, 2, 12, 3]:
        assert stream[index].id == f"r{index}" and len(stream._held) <= 2
    assert len(read) == 3  # the third takes the place of the one that was asked for longest ago


BAD = {"id": "bad", "question": "", "answer": "a"}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_good_record_is_trained_on_once_and_a_bad_one_leaves_an_uncounted_row(tmp_path, ranks, workers, caplog):
    files = write(tmp_path, {2: BAD, 9: {"id": "n", "question": "q", "answer": None}, 11: "nothing"})
    (tmp_path / "1.jsonl").write_text(json.dumps(BAD) + "\n" + json.dumps({**BAD, "question": "fine"}) + "\n")
    stream = open_stream(files, skip_bad=True, skip_long=True)

    def arrange(example, tokens):
        if example.id == "r20":
            raise TooLong("has 9 tokens")
        return [0], [0]

    dataset = ReasoningDataset(stream, lambda example, asked: (None, {}), "answer", arrange, instead=stream.instead)
    order = LaneOrder(stream.pieces, "0/0", 6, 3, 6)
    rows = []
    for rank in range(ranks):
        batches = RankBatches(len(stream), 6 // ranks, rank, ranks, order=order)
        rows += [row for batch in make_loader(dataset, batches, list, workers) for row in batch]
    counted = [stream[row.index].id for row in rows if row.counted]
    assert sorted(counted) == sorted([f"r{i}" for i in range(N) if i not in (2, 9, 11, 20)] + ["bad"])
    assert len(rows) == 24 and all(stream[row.index].question for row in rows)
    if not workers:
        said = " ".join(record.message for record in caplog.records if record.levelno == logging.WARNING)
        assert f"{files[0]}: record 2 (id 'bad'): 'question' must be text" in said
        assert f"{files[2]}: record 10 (id 'r20'): has 9 tokens: left out" in said


@pytest.mark.parametrize("workers", [0, 1])
def test_where_nothing_is_to_be_left_out_the_record_is_named(tmp_path, workers):
    files = write(tmp_path, {12: BAD})
    stream = open_stream(files, skip_long=True)
    dataset = ReasoningDataset(stream, lambda *_: (None, {}), "answer", lambda *_: ([], []), instead=stream.instead)
    with pytest.raises(UserError) as error:
        list(make_loader(dataset, RankBatches(N, 4, 0, 1), list, workers))
    assert str(error.value).startswith(f"{files[2]}: record 2 (id 'bad'): 'question' must be text")
    assert "on_bad_record: skip and --allow-change on_bad_record" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_it_ends_where_none_is_good_or_a_file_is_gone(tmp_path):
    files = write(tmp_path, {i: BAD for i in range(10, 14)})
    stream = open_stream(files, skip_bad=True)
    dataset = ReasoningDataset(stream, lambda *_: (None, {}), "answer", lambda *_: ([], []), instead=stream.instead)
    with pytest.raises(UserError, match=r"2.jsonl: record 1 .*\n?.*Nor is any other of the 4 records"):
        dataset[11, True]
    files[2].unlink()
    with pytest.raises(Unreadable, match=r"2\.jsonl: cannot be read"):
        dataset[20, True]


def test_the_lengths_of_pieces_are_what_an_order_needs(tmp_path):
    stream = open_stream(write(tmp_path), limit=11)
    assert stream.pieces.tolist() == [4, 4, 1, 1, 1, 0, 0, 0]
    assert sorted(LaneOrder(stream.pieces, "0", 4, 2, 4)) == np.arange(11).tolist()
