import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from multicoco.config import RunConfig
from multicoco.data.example import load_image
from multicoco.data.sources import load_examples, load_of_run
from multicoco.errors import UserError
from multicoco.tasks.scenes import render_scenes

SHARED = Path(__file__).parents[4] / "shared" / "data"
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
        official(correct_choice_idx=None, direct_answers="[]", rationales=[]),
        official(correct_choice_idx=None, direct_answers="None", rationales=[]),  # as the hub's test split
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


def test_a_text_answer_is_found_among_the_choices(tmp_path, images):
    records = [flattened(answer=" an owl "), flattened(answer="3"), flattened(answer=1)]
    # A choice that looks like an index: the index comes first.
    records.append(flattened(question="How many? The choices are 0 : 3, 1 : 2, 2 : 9", answer="2"))
    records.append(flattened(question="How many? The choices are 0 : 3, 1 : 2, 2 : 9", answer="9"))
    examples = load_examples(write(tmp_path / "f.json", records), images)
    assert [(e.answer_index, e.answer) for e in examples] == [
        (2, "an owl"),
        (3, "a bat"),
        (1, "a dog"),
        (2, "9"),
        (2, "9"),
    ]


@pytest.mark.parametrize(
    "record",
    [
        official(choices=["a", "", "c", "d"]),
        flattened(question="What is it? The choices are 0 : a, 1 : , 2 : c, 3 : d"),
        flattened(question="What is it? The choices are 0 : a, 1 : b, 2 : c, 3 : "),
        official(choices=["a", "a", "c", "d"]),
    ],
)
def test_choices_that_are_empty_or_stand_twice_keep_their_places(tmp_path, images, record):
    (example,) = load_examples(write(tmp_path / "f.json", [record]), images)
    assert len(example.choices) == 4
    assert (example.answer_index, example.answer) == (2, "c")


def test_copies_of_the_release_with_images_of_their_own(tmp_path, images):
    """As parquet and CSV copies have it: a path for the image, the direct answers as one text."""
    record = official(image="some/7.jpg", image_id=..., split=..., direct_answers="['owl', \"an owl\"]")
    (example,) = load_examples(write(tmp_path / "f.json", [record]), images)
    assert example.images == (images / "some" / "7.jpg",)
    assert example.direct_answers == ("owl", "an owl")


@pytest.mark.parametrize("image", [None, ...])
def test_a_flattened_record_may_have_no_image(tmp_path, image):
    (example,) = load_examples(write(tmp_path / "f.json", [flattened(image=image)]), tmp_path)
    assert (example.images, len(example.choices), example.answer_index) == ((), 4, 2)


def test_empty_rationales_are_no_steps(tmp_path, images):
    records = [official(1, rationales=["", " It flies."]), official(2, rationales=[]), flattened(steps=["", ""])]
    examples = load_examples(write(tmp_path / "f.json", records), images)
    assert [example.steps for example in examples] == [("It flies.",), (), ()]


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


def test_direct_answers_without_the_choices(tmp_path, images):
    keys = {"data_dir": str(tmp_path), "image_dir": str(images), "train_path": "f.json", "direct_answers": True}
    config = RunConfig(mode="cot_train", name="r", model_id="m", **keys)
    given = ["bird", "owl", "an owl", "owl", "bird"]
    hard = {"direct_answers": given, "difficult_direct_answer": True}
    unknown = {"direct_answers": None, "correct_choice_idx": None, "rationales": None}
    write(tmp_path / "f.json", [official(1, **hard), official(2, **unknown)])
    first, second = load_of_run(config, "f.json", None)
    assert (first.choices, first.answer_index, first.answer) == ((), None, "bird")  # of the most frequent the first
    assert first.direct_answers == tuple(given) and len(first.steps) == 2
    assert (first.metric, first.groups) == ("aokvqa", {"difficult_direct_answer": "true"})
    assert (second.choices, second.answer) == ((), None)
    write(tmp_path / "f.json", [official(difficult_direct_answer=word) for word in ("True", "false", None)])
    marks = [example.groups.get("difficult_direct_answer") for example in load_of_run(config, "f.json", None)]
    assert marks == ["true", "false", None]
    write(tmp_path / "f.json", [official(difficult_direct_answer="very")])
    with pytest.raises(UserError, match="'difficult_direct_answer' must be true or false, found 'very'"):
        load_of_run(config, "f.json", None)
    write(tmp_path / "f.json", [flattened()])
    with pytest.raises(UserError, match=r"f\.json: record '0' has no direct answers of annotators"):
        load_of_run(config, "f.json", None)


def test_the_parquet_copy_with_its_texts_of_lists(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    make_image(tmp_path / "i.png")
    picture = {"bytes": (tmp_path / "i.png").read_bytes(), "path": "i.png"}
    train = official(image=picture, image_id=..., split=..., direct_answers="['owl', \"owl's\", 'owl']")
    test = train | {"question_id": "q2", "correct_choice_idx": None, "direct_answers": None, "rationales": None}
    file = datasets.Dataset.from_list([train, test])
    file.cast_column("image", datasets.Image()).to_parquet(tmp_path / "validation.parquet")
    first, second = load_examples(tmp_path / "validation.parquet", tmp_path)
    assert first.direct_answers == ("owl", "owl's", "owl") and first.answer == "an owl"
    assert first.steps == ("It sits in a tree.", "It has big eyes.")
    assert load_image(first.image).size == (4, 4)
    assert (second.answer, second.steps, second.direct_answers) == (None, (), ())


BAD = {
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
    "choices as text": (official(choices="ab"), "'choices'"),
    "index too large": (official(correct_choice_idx=4), "'correct_choice_idx' is 4"),
    "index negative": (official(correct_choice_idx=-1), "'correct_choice_idx' is -1"),
    "index as text": (official(correct_choice_idx="2"), "'correct_choice_idx'"),
    "index missing alone": (official(correct_choice_idx=...), "'correct_choice_idx'"),
    "answers missing alone": (official(direct_answers=...), "'direct_answers'"),
    "no rationales": (official(rationales=...), "'rationales'"),
    "null rationale": (official(rationales=["a", None]), r"'rationales\[1\]'"),
    "id of a wrong type": (official(question_id=[1]), "'question_id'"),
    "no answer": (flattened(answer=...), "'answer' is missing"),
    "no steps": (flattened(steps=...), "'steps' is missing"),
    "steps as text": (flattened(steps="a. b."), "'steps'"),
    "answer not a choice": (flattened(answer="4"), "'answer'"),
    "index too large as number": (flattened(answer=4), "'answer' is 4"),
    "one flattened choice": (flattened(question="Who? The choices are 0 : a"), "at least 2"),
    "only choices": (flattened(question="The choices are 0 : a, 1 : b", answer="0"), "'question'"),
    "image of a wrong type": (flattened(image=7), "'image'"),
    "official image of a wrong type": (official(image=7), "'image'"),
    "half of another form": (flattened(options=["a cat", "a dog"]), "'options'"),
    "image outside": (flattened(image="../secret.jpg"), "leaves"),
    "absolute image": (flattened(image="/etc/passwd"), "leaves.*image_dir: /"),
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
def test_the_real_test_records(tmp_path):
    for record in json.loads((SHARED / "aokvqa_test_20.json").read_text()):
        make_image(tmp_path / record["image"])
    examples = load_examples(SHARED / "aokvqa_test_20.json", tmp_path)
    assert len(examples) == 20
    assert all(e.answer is None and e.steps == () and len(e.choices) == 4 for e in examples)
