"""Examples come back from disk as they were, whatever they hold, and nothing half-written is ever found."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.data.example import Example, Turn
from multicoco.data.kept import KeptExamples, KeptRecords, NotKept, keep
from multicoco.data.sources.location import Location
from multicoco.data.sources.tables import StoredInTable
from multicoco.errors import UserError

texts = st.text(max_size=8)
stored = st.builds(
    StoredInTable,
    st.builds(Location, texts, st.booleans(), st.none() | texts),
    st.integers(0, 9),
    st.tuples(texts, st.integers(0, 3), texts),
)
tuples = st.lists(texts, max_size=3).map(tuple)
examples = st.builds(
    Example,
    texts,
    texts,
    st.lists(st.binary(max_size=4) | stored | st.sampled_from([Path("/a b/c.png")]), max_size=2).map(tuple),
    tuples,
    tuples,
    st.none() | texts,
    st.none() | st.integers(0, 3),
    tuples,
    st.sampled_from(["text", "number"]),
    st.lists(st.integers(0, 5), max_size=2).map(tuple),
    st.none() | texts,
    st.dictionaries(texts, texts, max_size=2),
    st.lists(st.builds(Turn, texts, texts, st.lists(st.integers(0, 5), max_size=2).map(tuple)), max_size=2).map(tuple),
)


@given(records=st.lists(st.tuples(texts, examples | texts.map(UserError)), min_size=1, max_size=5))
def test_records_come_back_as_they_were(tmp_path_factory, records):
    kept = keep(tmp_path_factory.mktemp("kept") / "a.examples", records)
    found = [KeptRecords(kept.path)[i] for i in range(len(kept))]
    assert [label for label, _ in found] == [label for label, _ in records]
    for (_, mine), (_, theirs) in zip(found, records, strict=True):
        assert type(mine) is type(theirs) and (mine == theirs or str(mine) == str(theirs))


def question(name: str) -> Example:
    return Example(name, "q", (), (), (), "a", None)


def test_what_is_chosen_is_read_where_it_is_wanted_also_by_forks(tmp_path):
    records = keep(tmp_path / "a.examples", [(f"record {i}", question(f"q{i}")) for i in range(10)])
    chosen = KeptExamples(records, np.array([1, 4, 9]))
    assert [e.id for e in chosen] == ["q1", "q4", "q9"] and chosen[-1].id == "q9" and len(chosen) == 3
    assert [e.id for e in chosen[1:]] == ["q4", "q9"]
    assert pickle.loads(pickle.dumps(chosen))[0] == chosen[0]
    if (child := os.fork()) == 0:
        os._exit(sum(chosen[i].id != ["q1", "q4", "q9"][i] for i in (0, 1, 2) for _ in range(50)))
    for i in (2, 1, 0) * 50:
        assert chosen[i].id == ["q1", "q4", "q9"][i]
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(IndexError):
        chosen[3]


def test_what_breaks_off_leaves_nothing(tmp_path):
    class Own:
        def read(self) -> bytes:
            return b""

    def broken():
        yield "record 0", question("a")
        yield "record 1", Example("b", "q", (Own(),), (), (), "a", None)

    with pytest.raises(NotKept, match="Own"):
        keep(tmp_path / "a.examples", broken())
    assert [*tmp_path.iterdir()] == []
