import pytest

from multicoco.data.sources import load_examples
from multicoco.errors import UserError
from multicoco.tasks.gsm8k import convert_gsm8k

LINES = """\
Out of 600 employees, 30% got promoted. How many?||<<600*30/100=180>> <<180 + 180=360>> #### 360
He sold 5 and 1,229 more || He had 5. That makes 1,234 now. #### $1,234

What is left?||#### 0.75
"""


def convert(tmp_path, content):
    (tmp_path / "train.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    return convert_gsm8k(tmp_path / "train.txt", tmp_path / "out" / "gsm_train.json")


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_lines_become_records_that_are_judged_as_numbers(tmp_path, ends):
    assert convert(tmp_path, LINES.replace("\n", ends)) == 3
    examples = load_examples(tmp_path / "out" / "gsm_train.json", tmp_path)
    assert [example.steps for example in examples] == [
        ("<<600*30/100=180>>", "<<180 + 180=360>>"),
        ("He had 5.", "That makes 1,234 now."),
        (),
    ]
    assert [(example.answer, example.judge) for example in examples] == [
        ("360", "number"),
        ("1234", "number"),
        ("0.75", "number"),
    ]
    assert examples[1].question == "He sold 5 and 1,229 more"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("no marks at all\n", "line 1: a question"),
        (LINES + "\nQ?||<<1+1=2>> #### two\n", "line 6: the answer after #### must be one number, found 'two'"),
        ("||<<1+1=2>> #### 2", "line 1: a question"),
        ('[{"question": "Q?"}]', "line 1"),
        ("x\n" * 9, "and 4 more"),
        ("\n\n", "it is empty"),
        (b"\xff\xfe", "no text in UTF-8"),
    ],
)
def test_another_form_gets_one_message(tmp_path, content, expected):
    with pytest.raises(UserError, match=r"train\.txt") as raised:
        convert(tmp_path, content)
    assert expected in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_files_that_are_there_or_are_not_are_named(tmp_path):
    (tmp_path / "mine.json").write_text("precious")
    with pytest.raises(UserError, match=r"mine\.json is there already"):
        convert_gsm8k(tmp_path / "train.txt", tmp_path / "mine.json")
    with pytest.raises(UserError, match=r"train\.txt: cannot be read"):
        convert_gsm8k(tmp_path / "train.txt", tmp_path / "new.json")
    (tmp_path / "train.txt").write_text(LINES)
    with pytest.raises(UserError, match="cannot be written"):
        convert_gsm8k(tmp_path / "train.txt", tmp_path / "mine.json" / "new.json")
    assert (tmp_path / "mine.json").read_text() == "precious"
