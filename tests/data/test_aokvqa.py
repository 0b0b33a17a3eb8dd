import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from multicoco.data import aokvqa
from multicoco.data.aokvqa import load_examples, split_sentences
from multicoco.data.scenes import render_scenes
from multicoco.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real records are not here")


def write(path: Path, records: object) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def make_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def official(number: int = 1, **changes) -> dict:
    record = {
        "split": "train",
        "image_id": 7,
        "question_id": f"q{number}",
        "question": "What is it?",
        "choices": ["a cat", "a dog", "an owl", "a bat"],
        "correct_choice_idx": 2,
        "direct_answers": ["owl", "an owl", "bird"],
        "difficult_direct_answer": False,
        "rationales": ["It sits in a tree. It has big eyes.", "It is an owl.", "Owls look so."],
    }
    return {key: value for key, value in (record | changes).items() if value is not ...}


def flattened(**changes) -> dict:
    record = {
        "image": "some/7.jpg",
        "question": "What is it? The choices are 0 : a cat, 1 : a dog, 2 : an owl, 3 : a bat",
        "steps": ["It sits in a tree. It has big eyes.", "It is an owl.", "Owls look so."],
        "answer": "2",
    }
    return {key: value for key, value in (record | changes).items() if value is not ...}


@pytest.fixture
def images(tmp_path) -> Path:
    """An image folder with the image of `official` and of `flattened`."""
    make_image(tmp_path / "images" / "train2017" / "000000000007.jpg")
    make_image(tmp_path / "images" / "some" / "7.jpg")
    return tmp_path / "images"


@pytest.mark.parametrize("make", [official, flattened])
@pytest.mark.parametrize(
    ("steps_from", "steps"),
    [
        ("sentences", ("It sits in a tree.", "It has big eyes.")),
        ("rationales", ("It sits in a tree. It has big eyes.", "It is an owl.", "Owls look so.")),
    ],
)
def test_both_forms_give_the_same_example(tmp_path, images, make, steps_from, steps):
    (example,) = load_examples(write(tmp_path / "f.json", [make()]), images, steps_from)
    assert example.question == "What is it?"
    assert example.choices == ("a cat", "a dog", "an owl", "a bat")
    assert (example.answer, example.answer_index) == ("an owl", 2)
    assert example.steps == steps
    assert example.image.is_file() and example.image.is_relative_to(images)
    assert example.direct_answers == (("owl", "an owl", "bird") if make is official else ())


@pytest.mark.parametrize(
    "record",
    [
        official(correct_choice_idx=..., direct_answers=..., rationales=...),
        official(correct_choice_idx=None, direct_answers=None),
        flattened(steps=None, answer="None"),
        flattened(steps=None, answer=None),
        flattened(steps=[], answer="None"),
    ],
)
def test_a_test_record_has_no_answer(tmp_path, images, record):
    (example,) = load_examples(write(tmp_path / "f.json", [record]), images)
    assert example.question == "What is it?" and len(example.choices) == 4
    assert (example.answer, example.answer_index, example.steps, example.direct_answers) == (
        None,
        None,
        (),
        (),
    )


def test_an_image_without_choices_is_an_open_question(tmp_path, images):
    record = flattened(question="What is it?", answer="None", steps=["Nothing is there."])
    (example,) = load_examples(write(tmp_path / "f.json", [record]), images)
    assert (example.choices, example.answer, example.answer_index) == ((), "None", None)


@pytest.mark.parametrize("steps_from", ["sentences", "rationales"])
def test_text_only_records_keep_their_steps(tmp_path, steps_from):
    record = {"question": " Is Tom a lempus? ", "steps": ["One. Two.", " Three."], "answer": "Yes: a lempus."}
    (example,) = load_examples(write(tmp_path / "f.json", [record]), tmp_path, steps_from)
    assert example.question == "Is Tom a lempus?"
    assert example.steps == ("One. Two.", "Three.")
    assert (example.image, example.choices, example.answer_index) == (None, (), None)
    assert example.answer == "Yes: a lempus."


def test_where_the_official_image_is_looked_for(tmp_path):
    path = write(tmp_path / "f.json", [official()])
    flat = make_image(tmp_path / "flat" / "000000000007.png")
    split = make_image(tmp_path / "split" / "train2017" / "000000000007.png")
    make_image(tmp_path / "split" / "000000000007.png")
    assert load_examples(path, tmp_path / "flat")[0].image == flat
    assert load_examples(path, tmp_path / "split")[0].image == split


def test_the_image_folder_may_be_relative_or_reached_by_a_link(tmp_path, images, monkeypatch):
    path = write(tmp_path / "f.json", [official(), flattened()])
    (tmp_path / "linked").mkdir()
    for name in ("some", "train2017"):
        (tmp_path / "linked" / name).symlink_to(images / name)
    assert len(load_examples(path, tmp_path / "linked")) == 2
    monkeypatch.chdir(images)
    assert len(load_examples(path, Path("."))) == 2


def test_ids(tmp_path, images):
    records = [official(5), flattened(id="mine"), flattened(idx=12), flattened()]
    examples = load_examples(write(tmp_path / "f.json", records), images)
    assert [example.id for example in examples] == ["q5", "mine", "12", "3"]


def test_a_text_answer_is_found_among_the_choices(tmp_path, images):
    records = [flattened(answer=" an owl "), flattened(answer="3")]
    # A choice that looks like an index: the index comes first.
    records.append(flattened(question="How many? The choices are 0 : 3, 1 : 2, 2 : 9", answer="2"))
    records.append(flattened(question="How many? The choices are 0 : 3, 1 : 2, 2 : 9", answer="9"))
    examples = load_examples(write(tmp_path / "f.json", records), images)
    assert [(e.answer_index, e.answer) for e in examples] == [(2, "an owl"), (3, "a bat"), (2, "9"), (2, "9")]


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(str.strip)
choice_texts = st.one_of(texts, st.sampled_from(["a, b", "12 : 30", "red, blue, 3", ": ,", "4 : 3, 16:9"])).map(
    str.strip
)


@settings(max_examples=60, deadline=None)
@given(question=texts, choices=st.lists(choice_texts, min_size=2, max_size=12), data=st.data())
def test_choices_come_back_as_they_were(tmp_path_factory, question, choices, data):
    index = data.draw(st.integers(0, len(choices) - 1))
    folder = tmp_path_factory.mktemp("f")
    make_image(folder / "i.png")
    listed = ", ".join(f"{i} : {choice}" for i, choice in enumerate(choices))
    record = flattened(image="i.png", question=f"{question} The choices are {listed}", answer=str(index))
    (example,) = load_examples(write(folder / "f.json", [record]), folder)
    assert example.question == question.strip()
    assert example.choices == tuple(choices)
    assert (example.answer_index, example.answer) == (index, choices[index])


def test_the_last_list_of_choices_counts(tmp_path, images):
    record = flattened(question="What does 'The choices are 0 : x' mean? The choices are 0 : a, 1 : b", answer="1")
    (example,) = load_examples(write(tmp_path / "f.json", [record]), images)
    assert example.question == "What does 'The choices are 0 : x' mean?"
    assert example.choices == ("a", "b")


def test_text_is_data_and_never_control(tmp_path, images):
    texts = ["<image> <|latent|> {question}", "%s \\n <b>&amp;</b>"]
    record = official(question=f" {texts[0]}\n", choices=texts, correct_choice_idx=1, rationales=[texts[1]])
    (example,) = load_examples(write(tmp_path / "f.json", [record]), images)
    assert (example.question, example.choices, example.steps) == (texts[0], tuple(texts), (texts[1],))


BAD = {
    "no object": (["a", "list"], "JSON object"),
    "nothing": ({}, "'question' is missing"),
    "no question": (official(question=...), "'question'"),
    "empty question": (official(question="  "), "'question'"),
    "number as question": (official(question=3), "'question'"),
    "half a surrogate pair": (official(question="a \ud800"), "Unicode"),
    "no image id": (official(image_id=...), "'image_id'"),
    "bool as image id": (official(image_id=True), "'image_id'"),
    "no split": (official(split=...), "'split'"),
    "split outside": (official(split="../../x"), "leaves"),
    "no such image": (official(image_id=8), "000000000008.jpg"),
    "no choices": (official(choices=...), "'choices'"),
    "one choice": (official(choices=["a"], correct_choice_idx=0), "at least 2"),
    "empty choice": (official(choices=["a", ""], correct_choice_idx=0), r"'choices\[1\]'"),
    "choices as text": (official(choices="ab"), "'choices'"),
    "index too large": (official(correct_choice_idx=4), "'correct_choice_idx' is 4"),
    "index negative": (official(correct_choice_idx=-1), "'correct_choice_idx' is -1"),
    "index as text": (official(correct_choice_idx="2"), "'correct_choice_idx'"),
    "index missing alone": (official(correct_choice_idx=...), "'correct_choice_idx'"),
    "answers missing alone": (official(direct_answers=...), "'direct_answers'"),
    "no rationales": (official(rationales=...), "'rationales'"),
    "empty rationale": (official(rationales=["a", " "]), r"'rationales\[1\]'"),
    "id of a wrong type": (official(question_id=[1]), "'question_id'"),
    "no answer": (flattened(answer=...), "'answer' is missing"),
    "no steps": (flattened(steps=...), "'steps' is missing"),
    "steps as text": (flattened(steps="a. b."), "'steps'"),
    "answer not a choice": (flattened(answer="4"), "'answer'"),
    "answer as number": (flattened(answer=2), "'answer'"),
    "one flattened choice": (flattened(question="Who? The choices are 0 : a"), "at least 2"),
    "empty flattened choice": (flattened(question="Who? The choices are 0 : a, 1 : "), "'choice 1'"),
    "only choices": (flattened(question="The choices are 0 : a, 1 : b", answer="0"), "'question'"),
    "image of a wrong type": (flattened(image=None), "'image'"),
    "image outside": (flattened(image="../secret.jpg"), "leaves"),
    "absolute image": (flattened(image="/etc/passwd"), "leaves"),
    "no image file": (flattened(image="some/8.jpg"), "8.jpg"),
    "broken image": (flattened(image="broken.jpg"), "broken.jpg"),
}


@pytest.mark.parametrize(("record", "reason"), BAD.values(), ids=BAD)
def test_a_bad_record_is_an_error_or_left_out(tmp_path, images, caplog, record, reason):
    make_image(tmp_path / "secret.jpg")
    (images / "broken.jpg").write_bytes(b"no image")
    path = write(tmp_path / "f.json", [official(1), record, official(2)])
    with pytest.raises(
        UserError, match=rf"f\.json: 1 bad of 3 records\n  record 1.*{reason}(.|\n)*on_bad_record: skip"
    ):
        load_examples(path, images)
    with caplog.at_level(logging.WARNING):
        assert [e.id for e in load_examples(path, images, on_bad_record="skip")] == ["q1", "q2"]
    (warning,) = caplog.messages
    assert "1 bad of 3 records" in warning and "record 1" in warning


def test_a_second_record_of_the_same_id_is_bad(tmp_path, images):
    path = write(tmp_path / "f.json", [official(1), official(2), official(1, question="Another?")])
    with pytest.raises(UserError, match=r"record 2.*'q1'.*record 0"):
        load_examples(path, images)
    examples = load_examples(path, images, on_bad_record="skip")
    assert [(e.id, e.question) for e in examples] == [("q1", "What is it?"), ("q2", "What is it?")]


def test_the_first_ten_bad_records_are_shown_with_their_ids_and_all_are_counted(tmp_path, images):
    path = write(tmp_path / "f.json", [official(99), *(official(i, choices=[]) for i in range(25))])
    with pytest.raises(UserError, match="25 bad of 26 records") as caught:
        load_examples(path, images)
    message = str(caught.value)
    assert [f"'q{i}'" in message for i in range(25)] == [True] * 10 + [False] * 15
    assert "and 15 more" in message


def test_images_are_decoded_only_on_request_but_must_be_there(tmp_path, images):
    (images / "some" / "7.jpg").write_bytes(b"no image")
    path = write(tmp_path / "f.json", [flattened()])
    assert len(load_examples(path, images, verify_images=False)) == 1
    path = write(tmp_path / "g.json", [flattened(image="some/8.jpg")])
    with pytest.raises(UserError, match=r"8\.jpg"):
        load_examples(path, images, verify_images=False)


def test_the_limit_counts_good_records_and_checks_none_after_them(tmp_path, images, monkeypatch):
    decoded = []
    monkeypatch.setattr(aokvqa, "load_image", decoded.append)
    records = [official(0), official(1, choices=[]), official(2), official(3), official(4, choices=[])]
    path = write(tmp_path / "f.json", records)
    examples = load_examples(path, images, on_bad_record="skip", limit=2)
    assert [example.id for example in examples] == ["q0", "q2"]
    assert len(decoded) == 2
    assert len(load_examples(path, images, limit=1)) == 1
    assert len(load_examples(path, images, on_bad_record="skip", limit=100)) == 3
    with pytest.raises(UserError, match="limit"):
        load_examples(path, images, limit=0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "list"),
        (b'{"data": []}', "list"),
        (b"[{]", "JSON"),
        (b'{"a": 1}\n{"a": 2}', "JSON"),
        (b"", "JSON"),
        (b"\xff\xfe[", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[" + b"9" * 5000 + b"]", "JSON"),
        (None, "read"),
    ],
)
@pytest.mark.parametrize("on_bad_record", ["error", "skip"])
def test_a_file_that_is_no_list_of_records_is_named(tmp_path, content, reason, on_bad_record):
    if content is not None:
        (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"f\.json.*{reason}"):
        load_examples(tmp_path / "f.json", tmp_path, on_bad_record=on_bad_record)


def test_skipping_every_record_is_an_error(tmp_path):
    with pytest.raises(UserError, match="2 bad of 2 records"):
        load_examples(write(tmp_path / "f.json", [official(1), official(2)]), tmp_path, on_bad_record="skip")


def test_a_byte_order_mark_is_no_matter(tmp_path):
    record = {"question": "Q?", "steps": [], "answer": "A."}
    (tmp_path / "f.json").write_text(json.dumps([record]), encoding="utf-8-sig")
    assert load_examples(tmp_path / "f.json", tmp_path)[0].answer == "A."


@pytest.mark.parametrize(
    "sentences",
    [
        ["He's 3.5 ft. tall.", "He is a child."],
        ["He is 6 ft.", "The door is higher."],
        ["Mr. Smith and Dr. J. Jones met St. Nicholas vs. the others."],
        ["The U.S. flag flies at 9 a.m. every day.", "it is windy."],
        ["People use it, e.g. cooks.", "Is it hot?", "Yes!!", "it is..."],
        ['The sign says "Stop."', "It is red."],
        ['The sign says "Stop!" in white (it is red.) and stands.', "so cars stop"],
        ["See example.com for version 2.0 of it"],
    ],
)
def test_sentences(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


@settings(max_examples=100)
@given(st.text(st.sampled_from("aB .!?\"')(\n") | st.characters()))
def test_sentences_hold_all_of_the_text(text):
    sentences = split_sentences(text)
    assert " ".join(sentences).split() == text.split()
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


def test_generated_scenes_load(tmp_path):
    render_scenes(tmp_path / "s", train=12, val=3, test=3, hops=4)
    loaded = {
        split: load_examples(tmp_path / "s" / f"aokvqa_v1p0_{split}.json", tmp_path / "s")
        for split in ("train", "val", "test")
    }
    assert [len(examples) for examples in loaded.values()] == [12, 3, 3]
    assert all(len(e.steps) == 4 and e.steps[-1].endswith(f"{e.answer}.") for e in loaded["train"])
    assert all(e.answer is None and len(e.choices) == 4 for e in loaded["test"])


@needs_shared
def test_the_real_validation_records(tmp_path):
    path = SHARED / "aokvqa_validation_100.json"
    records = json.loads(path.read_text())
    for record in records[:5]:
        make_image(tmp_path / record["image"])
    examples = load_examples(path, tmp_path, limit=5)
    assert examples[0].question == "What is in the motorcyclist's mouth?"
    assert examples[0].choices == ("toothpick", "food", "popsicle stick", "cigarette")
    assert (examples[0].answer_index, examples[0].answer) == (3, "cigarette")
    assert examples[0].steps == ("He's smoking while riding.",)
    assert len(load_examples(path, tmp_path, "rationales", limit=5)[0].steps) == 3
    with pytest.raises(UserError, match="95 bad of 100 records"):
        load_examples(path, tmp_path)
    for record in records[5:]:
        make_image(tmp_path / record["image"])
    everything = load_examples(path, tmp_path, verify_images=False)
    assert len(everything) == 100
    assert all(len(e.choices) == 4 and e.steps for e in everything)


@needs_shared
def test_the_real_test_and_text_only_records(tmp_path):
    for record in json.loads((SHARED / "aokvqa_test_20.json").read_text()):
        make_image(tmp_path / record["image"])
    examples = load_examples(SHARED / "aokvqa_test_20.json", tmp_path)
    assert len(examples) == 20
    assert all(e.answer is None and e.steps == () and len(e.choices) == 4 for e in examples)
    examples = load_examples(SHARED / "prosqa_valid_100.json", tmp_path)
    assert len(examples) == 100
    assert all(e.image is None and 3 <= len(e.steps) <= 6 and e.answer for e in examples)
