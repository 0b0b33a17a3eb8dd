import numpy as np
import pytest

from multicoco.engine.remembered import recall, remember


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_numbers_come_back_as_they_were(tmp_path, kind):
    path, numbers = tmp_path / "new" / "f", np.array([3, -1, np.iinfo(kind).max], kind)
    assert recall(path, kind) is None
    remember(path, numbers)
    again = recall(path, kind)
    assert again is not None and again.dtype == kind and again.tolist() == numbers.tolist()
    assert [known is not None for known in (recall(path, kind, n) for n in (2, 3, 4))] == [False, True, False]


def test_what_is_no_such_file_is_taken_for_none(tmp_path):
    (tmp_path / "cut").write_bytes(bytes(7))
    assert recall(tmp_path / "cut", np.int32) is recall(tmp_path, np.int32) is recall(None, np.int32) is None


def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    remember(tmp_path / "file" / "f", np.zeros(2, np.int32))
    remember(None, np.zeros(2, np.int32))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
