import os

import pytest

from multicoco.files import ABANDONED_SECONDS, sweep, whole


def test_who_writes_at_once_does_not_see_the_others_and_the_last_one_is_there(tmp_path):
    path = tmp_path / "numbers"
    with whole(path) as first, whole(path) as second:
        first.write_text("1")
        second.write_text("2")
        assert not path.exists()
    assert path.read_text() == "1" and [*tmp_path.iterdir()] == [path]


def test_of_what_fails_nothing_is_left_and_what_was_there_stays(tmp_path):
    (tmp_path / "numbers").write_text("before")
    with pytest.raises(OSError, match="full"), whole(tmp_path / "numbers") as unfinished:
        unfinished.write_text("half")
        raise OSError("full")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("numbers", "before")]


def test_what_a_killed_writer_has_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    with whole(tmp_path / "numbers") as writing:
        writing.write_text("1")
        left = writing.with_name(".0123.unfinished")
        left.write_text("half")
        long_ago = left.stat().st_mtime - ABANDONED_SECONDS - 60
        os.utime(left, (long_ago, long_ago))
        sweep(tmp_path)
        assert [*tmp_path.iterdir()] == [writing]
    sweep(tmp_path / "not there")
    assert (tmp_path / "numbers").read_text() == "1"
