import base64
import json
from pathlib import Path

import pytest

from multicoco.data.sources import load_examples
from multicoco.errors import UserError

SHARED = Path(__file__).parents[4] / "shared" / "data"
RECORD = {"question": " Is Tom a lempus? ", "steps": ["One. Two.", " Three.", ""], "answer": " Yes: a lempus."}
PETS = RECORD | {"choices": ["cat", "dog", "", "owl"], "answer": "dog"}


@pytest.mark.parametrize("steps_from", ["sentences", "rationales"])
@pytest.mark.parametrize("image", [{}, {"image": None}, {"image": "a.png"}])
def test_steps_are_kept_as_they_are(read, steps_from, image):
    (example,) = read(RECORD | image, steps_from=steps_from)
    assert example.question == "Is Tom a lempus?"
    assert example.steps == ("One. Two.", "Three.")
    assert (example.choices, example.answer_index, example.answer) == ((), None, "Yes: a lempus.")


def test_null_and_absent_are_nothing(read):
    records = [RECORD | {"steps": None}, {"question": "Q?", "answer": "A"}, RECORD | {"answer": None, "images": []}]
    examples = read(*records)
    assert [e.steps for e in examples] == [(), (), ()]
    assert [e.answer for e in examples] == ["Yes: a lempus.", "A", None]
    assert read(RECORD | {"answer": "None", "steps": []})[0].answer == "None"  # how many are left


@pytest.mark.parametrize(
    ("fields", "images"),
    [
        ({"image": "a.png"}, ["a.png"]),
        ({"image": ["a.png", "b.png"]}, ["a.png", "b.png"]),
        ({"images": ["b.png", "a.png"]}, ["b.png", "a.png"]),
        ({"images": "a.png", "image": None}, ["a.png"]),
        ({"images": [], "image": "a.png"}, ["a.png"]),
        ({"images": []}, []),
        ({"image": None, "images": None}, []),
    ],
)
def test_images(read, tmp_path, fields, images):
    (example,) = read(RECORD | fields)
    assert example.images == tuple(tmp_path / name for name in images)
    assert example.image == (tmp_path / images[0] if images else None)


@pytest.mark.parametrize("form", ["data:image/png;base64,{}", "{}", "lines"])
def test_an_image_in_base64(read, tmp_path, form):
    picture = (tmp_path / "a.png").read_bytes()
    coded = base64.encodebytes(picture).decode() if form == "lines" else form.format(base64.b64encode(picture).decode())
    for fields in ({"image": coded}, {"images": ["b.png", {"bytes": coded, "path": "gone.png"}]}):
        (example,) = read(RECORD | fields)
        assert example.images[-1] == picture and len(example.images) == len(fields.get("images", [1]))
    broken = coded.strip()[:-3] if form == "lines" else coded[:-3]
    with pytest.raises(UserError, match=r"record 0.*base64"):
        read(RECORD | {"image": broken})


def test_an_image_as_hugging_face_writes_one(read, tmp_path):
    (example,) = read(RECORD | {"image": {"bytes": None, "path": "a.png"}})
    assert example.images == (tmp_path / "a.png",)


@pytest.mark.parametrize(
    ("question", "shown", "places"),
    [
        ("<image>\n<image>\nWhich?", "Which?", ()),
        ("  First <image>, then <image>: which?", "First , then : which?", (6, 13)),
        ("<image> or\n<image>", "or", (0, 2)),
        ("Which?", "Which?", ()),
    ],
)
def test_images_stand_at_their_marks(read, question, shown, places):
    (example,) = read(RECORD | {"question": question, "images": ["b.png", "a.png"]})
    assert (example.question, example.image_places) == (shown, places)


def test_marks_that_are_not_one_for_each_image_are_a_bad_record(read):
    for images, number in ((["a.png"], 2), (["a.png", "b.png", "a.png"], 2)):
        with pytest.raises(UserError, match=f"{number} marks <image> for {len(images)} images"):
            read(RECORD | {"question": "<image> or <image>?", "images": images})
    with pytest.raises(UserError, match="choices that are pictures"):
        read(PETS | {"choices": ["<image>", "dog"], "images": ["a.png"]})
    assert read(RECORD | {"question": "What does <image> mean in HTML?"})[0].question.count("<image>") == 1


PICTURE = base64.b64encode(bytes(range(256)) * 40).decode()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (f"data:image/png;base64,{PICTURE}", "cannot be read as an image"),
        (f"data:image/svg+xml,{PICTURE}", "not in base64"),
        (PICTURE, "cannot be read as an image"),
        ("/9j/" + PICTURE, "cannot be read as an image"),
        ("https://example.org/a.png", "address"),
        ("x/" * 3000 + "a.png", "no path"),
        ("a.png\0", "no path"),
        ("c.png", "there is no image"),
        ("..", "leaves the image folder"),
        ("/etc/hostname", "image_dir: /"),
        (".", "it is a folder"),
        ("", "'image'"),
        ([], "'image'"),
        ([["a.png"]], r"'image\[0\]'"),
        ({"bytes": None, "path": "no.png"}, "no.png"),
        ({"bytes": None, "path": None}, "'image'"),
        ({"url": "a.png"}, "'image'"),
        (7, "'image'"),
    ],
)
def test_what_is_no_image_is_a_bad_record(read, image, reason):
    with pytest.raises(UserError, match=rf"1 bad of 2 records\n  record 1.*{reason}") as caught:
        read(RECORD, RECORD | {"image": image})
    assert len(str(caught.value)) < 1000
    assert len(read(RECORD, RECORD | {"image": image}, on_bad_record="skip")) == 1


def test_both_image_and_images_are_unclear(read):
    with pytest.raises(UserError, match="'image' and 'images'"):
        read(RECORD | {"image": "a.png", "images": ["b.png"]})


@pytest.mark.parametrize(
    ("choices", "answer", "index"),
    [
        (["cat", "dog", "", "owl"], "dog", 1),
        (["cat", "dog", "", "owl"], 3, 3),
        (["cat", "dog", "", "owl"], "3", 3),
        (["cat", "dog", "", "owl"], "D", 3),
        (["1", "2", "3", "5"], "2", 1),  # a text is a text
        (["1", "2", "3", "5"], 2, 2),  # and a number an index, as ScienceQA has it
        ([10, 20.5, 30], 30, 2),
        ([10, 20.5, 30], 1, 1),
        ([10, 20.5, 30], "20.5", 1),
        ([0, 1, 2], 1, 1),
        (["A", "B"], "B", 1),
    ],
)
def test_an_answer_is_the_text_of_a_choice_or_its_index(read, choices, answer, index):
    (example,) = read(PETS | {"choices": choices, "answer": answer})
    assert (example.answer_index, example.answer) == (index, str(choices[index]))


@pytest.mark.parametrize(
    ("choices", "answer", "reason"),
    [
        (["cat", "dog"], 2, "'answer' is 2"),
        (["cat", "dog"], -1, "'answer' is -1"),
        (["cat", "dog"], "C", "'answer' must"),
        (["cat", "dog"], "Dog", "'answer' must"),
        (["cat", "dog"], True, "'answer' must"),
        (["cat", "dog"], 0.5, "'answer' must"),
        (["1", "2", "3", "5"], "0", "'answer' must"),  # a number that is no choice
        (["b", "c"], "B", "'answer' must"),
        ([1, 2, 3], 2, "'answer' 2 may be"),  # the choice or the third one
        (["cat"], "cat", "at least 2"),
        ("cat, dog", "cat", "'choices'"),
        (["cat", None], "cat", r"'choices\[1\]'"),
        ({"text": ["cat", "dog"]}, "cat", "'choices'"),
    ],
)
def test_an_answer_that_is_unclear_is_a_bad_record(read, choices, answer, reason):
    with pytest.raises(UserError, match=reason):
        read(PETS | {"choices": choices, "answer": answer})


@pytest.mark.parametrize(("answer", "text"), [(72, "72"), (18.5, "18.5"), (-3, "-3")])
def test_a_number_is_an_answer_judged_as_one(read, answer, text):
    (example,) = read(RECORD | {"answer": answer})
    assert (example.answer, example.judge) == (text, "number")


@pytest.mark.parametrize(
    "key",
    ["options", "Options", "option_a", "A", "context", "hint", "passage", "facts", "table", "story", "background",
     "input", "image_path", "imageUrl", "image_2", "image_id", "img", "imgs", "picture", "video", "audio", "messages"],
)  # fmt: skip
def test_what_looks_like_a_part_of_the_question_is_not_dropped(read, key):
    for value in ("x", ["x", "y"]):
        with pytest.raises(UserError, match=f"'{key}' looks like a part of the question"):
            read(RECORD | {key: value})
    for value in (None, "", []):
        assert len(read(RECORD | {key: value})) == 1


@pytest.mark.parametrize(
    ("steps_from", "steps"),
    [("sentences", ("I look.", "It barks.", "So it does.")), ("lines", ("I look. It barks.", "So it does."))],
)
def test_reasoning_in_one_text_is_split(read, steps_from, steps):
    assert read(RECORD | {"steps": " I look. It barks.\nSo it does."}, steps_from=steps_from)[0].steps == steps
    assert read(RECORD | {"steps": " "}, steps_from=steps_from)[0].steps == ()


@pytest.mark.parametrize("key", ["rationale", "solution", "explanation", "reasoning"])
def test_reasoning_under_another_name_is_not_dropped(read, key):
    with pytest.raises(UserError, match=f"'{key}' looks like the reasoning"):
        read({"question": "Q?", "answer": "A", key: "So."})
    assert read({"question": "Q?", "answer": "A", key: "So."}, columns={"steps": key})[0].steps == ("So.",)
    assert read(RECORD | {key: "So."})[0].steps == ("One. Two.", "Three.")


def test_metadata_is_no_matter(read):
    metadata = {
        "split": "train", "subject": "x", "grade": "grade2", "topic": "x", "category": "x", "skill": "x",
        "lecture": "x",
        "source": "x", "difficulty": 3, "edges": [[0, 1]], "root": 0, "target": 5, "neg_target": 7, "type": "x",
        "idx_to_symbol": ["Tom"], "difficult_direct_answer": False, "is_multiple_choice": True, "context_length": 5,
        "correct_choice": "x", "question_type": "x", "num_images": 0, "has_image": True,
    }  # fmt: skip
    assert len(read(RECORD | metadata)) == 1
    about_image = {"image_id": 7, "image_width": 640, "image_url": "http://example.org", "imageSource": "coco"}
    assert len(read(RECORD | about_image | {"image": "a.png"})) == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not here")
def test_the_real_records(tmp_path):
    examples = load_examples(SHARED / "prosqa_valid_100.json", tmp_path)
    records = json.loads((SHARED / "prosqa_valid_100.json").read_text())
    assert [list(e.steps) for e in examples] == [record["steps"] for record in records]
    assert all(e.images == () and 3 <= len(e.steps) <= 6 and e.answer for e in examples)
