import json

import pytest

from multicoco.errors import UserError
from multicoco.tasks.files import check_sizes, digest, question_key, questions_in, write_folder


def write(folder, content="x"):
    def files(unfinished):
        (unfinished / "a.json").write_text(content)

    write_folder(folder, {"seed": 1}, ["a.json"], files)


def test_a_folder_is_written_once_and_then_left(tmp_path):
    write(tmp_path / "made" / "set")
    write(tmp_path / "made" / "set", "other")
    assert (tmp_path / "made" / "set" / "a.json").read_text() == "x"
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["set"]


def test_what_is_no_data_set_of_these_arguments_is_kept(tmp_path):
    write(tmp_path / "set")
    (tmp_path / "set" / "mine").write_text("precious")
    with pytest.raises(UserError, match=r"not empty and not the data set of \{'seed': 1\}"):
        write(tmp_path / "set")
    assert (tmp_path / "set" / "mine").read_text() == "precious"


@pytest.mark.parametrize("sizes", [{"train": -1, "val": 1}, {"train": 0, "val": 0}])
def test_sizes_that_make_no_data_set_are_refused(sizes):
    with pytest.raises(UserError, match="'val'"):
        check_sizes("task", sizes)


def test_the_order_of_facts_and_options_is_no_difference():
    same = [question_key(f"{facts} Is Tom {options}?") for facts, options in (
        ("Tom is a b. Every b is a c.", "a c or d"), ("Every b is a c. Tom is a b.", "a d or c")
    )]  # fmt: skip
    assert same[0] == same[1]
    assert question_key("Tom is a b. Every b is a c. Is Tom a c or e?") != same[0]
    assert question_key("Tom is a b. Every b is a d. Is Tom a c or d?") != same[0]


def test_questions_are_read_from_files_and_folders(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"question": "A. B?"}]))
    (tmp_path / "empty.json").write_text("[]\n")
    (tmp_path / "dataset.json").write_text('{"seed": 0}')
    assert questions_in([tmp_path]) == questions_in([tmp_path / "a.json"]) == {question_key("A. B?")}
    assert digest(questions_in([tmp_path])) == digest({question_key("A. B?")}) != digest(set())


@pytest.mark.parametrize("content", ['[{"text": "x"}]', "[1]", "no json", "[]"])
def test_what_holds_no_questions_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        questions_in([tmp_path / "a.json"])
    with pytest.raises(UserError, match="none"):
        questions_in([tmp_path / "none"])
