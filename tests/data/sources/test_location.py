import pytest

from multicoco.data.sources.location import Location, locate
from multicoco.errors import UserError


def test_what_is_written_is_found_again(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "odd?split=1.json").write_text("[]")
    place = str(tmp_path / "folder")
    hub = Location("owner/name", True, split="train", revision="abc")
    assert locate(tmp_path, "a.json") == Location(str(tmp_path / "a.json"))
    assert locate(tmp_path, "/b/a.json") == Location("/b/a.json")
    assert locate(tmp_path, "folder?split=test") == Location(place, split="test")
    assert locate(tmp_path, "odd?split=1.json").is_table is False
    assert locate("anywhere", "hf://owner/name?split=train&revision=abc") == hub
    assert locate("elsewhere", str(hub)) == hub


def test_what_datasets_reads(tmp_path):
    (tmp_path / "folder").mkdir()
    tables = ["hf://a/b", "folder", "x.parquet", "x.ARROW", "train-*.parquet", "x.feather"]
    assert [locate(tmp_path, path).is_table for path in [*tables, "x.json", "x.jsonl"]] == [True] * 6 + [False] * 2


def test_files_of_a_pattern_and_of_a_folder(tmp_path):
    for name in ("b-1.parquet", "b-0.parquet", "a.parquet"):
        (tmp_path / name).touch()
    assert [file.name for file in locate(tmp_path, "b-*.parquet").files] == ["b-0.parquet", "b-1.parquet"]
    assert len(locate("", tmp_path).files) == 3 and locate(tmp_path, "c.parquet").files == []
    assert locate("", "hf://a/b").files == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("hf://a/b?splt=train", "not 'splt'"),
        ("hf://a/b?split=", "not 'split'"),
        ("hf://a/b?", "split=..."),
        ("hf://a/b?train", "not 'train'|split=..."),
        ("x.json?split=train", "only a folder or a data set"),
        ("x.parquet?split=train", "only a folder or a data set"),
        (".?revision=abc", "only a data set of the hub has revisions"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, path, reason):
    with pytest.raises(UserError, match=reason):
        locate(tmp_path, path)
