import json

import pytest
from PIL import Image

from multicoco.data.sources import load_examples
from multicoco.errors import UserError

RELEASED = {
    "question": "Which of these is farthest north?",
    "choices": ["Oregon", "Louisiana"],
    "answer": 0,
    "hint": "",
    "image": "image.png",
    "task": "closed choice",
    "grade": "grade2",
    "subject": "social science",
    "topic": "geography",
    "category": "Geography",
    "skill": "Read a map",
    "lecture": "Maps have four cardinal directions.",
    "solution": "Look at the map. Oregon is farthest north.",
    "split": "train",
}


def test_the_released_file_is_an_object_of_records_by_id(tmp_path):
    for problem in ("1", "2"):
        folder = tmp_path / "train" / problem
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "image.png")
    path = tmp_path / "problems.json"
    path.write_text(json.dumps({"1": RELEASED, "2": RELEASED, "5": RELEASED | {"image": None}}))
    examples = load_examples(path, tmp_path)
    assert [(e.id, e.image) for e in examples] == [
        ("1", tmp_path / "train/1/image.png"),
        ("2", tmp_path / "train/2/image.png"),
        ("5", None),
    ]
    assert examples[0].steps == ("Look at the map.", "Oregon is farthest north.")
    expected = {"subject": "social science", "topic": "geography", "grade": "grade2"}
    assert examples[0].groups == {**expected, "has_text": "false", "has_image": "true"}
    assert examples[2].groups == {**expected, "has_text": "false", "has_image": "false"}
    assert (examples[0].choices, examples[0].answer_index, examples[0].answer) == (("Oregon", "Louisiana"), 0, "Oregon")


def test_copies_of_it(read):
    record = RELEASED | {"image": "a.png", "hint": " It is cold. ", "solution": "", "answer": 1}
    (example,) = read({key: value for key, value in record.items() if key != "split"}, steps_from="rationales")
    assert example.question == "Which of these is farthest north?\nContext: It is cold."
    assert (example.steps, example.answer, example.image.name) == ((), "Louisiana", "a.png")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"answer": 2}, "'answer' is 2"), ({"answer": "Oregon"}, "'answer'"), ({"image": "no.png"}, "no.png"),
     ({"choices": ["Oregon"]}, "'choices'"), ({"hint": 5}, "'hint'"), ({"passage": "x"}, "'passage'")],
)  # fmt: skip
def test_bad_records(read, changes, reason):
    with pytest.raises(UserError, match=reason):
        read(RELEASED | {"image": "a.png"} | changes)


def test_a_test_record(read):
    (example,) = read(RELEASED | {"image": None, "answer": None})
    assert (example.answer, example.answer_index, example.steps) == (None, None, ())
