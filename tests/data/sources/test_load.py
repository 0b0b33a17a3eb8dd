import json
import logging
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multicoco.config import RunConfig
from multicoco.data.sources import load_examples, load_of_run, require_answers, require_steps
from multicoco.errors import UserError

GOOD = {"question": "What?", "steps": ["So."], "answer": "a cat"}
CHOSEN = GOOD | {"image": "a.png", "choices": ["a cat", "a dog"]}


BAD = [
    (["a"], "JSON object"),
    ({}, "'question' is missing\n"),
    (7, "object"),
    ({"q": "?"}, "is missing, there are 'q'"),
]


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_a_bad_record_is_an_error_or_left_out(read, caplog, record, reason):
    with pytest.raises(UserError, match=rf"f\.json: 1 bad of 3 records\n  record 1.*{reason}(.|\n)*on_bad_record: ski"):
        read(GOOD, record, GOOD)
    with caplog.at_level(logging.WARNING):
        assert len(read(GOOD, record, GOOD, on_bad_record="skip")) == 2
    (warning,) = caplog.messages
    assert "1 bad of 3 records" in warning and "record 1" in warning


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters()),
        st.sampled_from(["a.png", ".", "/", "\0", "x" * 5000, "~", "http://a/b.png", "The choices are 0 : ", "#### 7"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
KEYS = (
    "question",
    "steps",
    "answer",
    "image",
    "images",
    "choices",
    "id",
    "question_id",
    "image_id",
    "split",
    "options",
)
KEYS_OF_SOURCES = ("correct_choice_idx", "direct_answers", "rationales", "hint", "solution", "rationale", "messages")
keys = st.sampled_from(KEYS + KEYS_OF_SOURCES)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(keys, json_values, max_size=4), start=st.sampled_from([GOOD, CHOSEN, {}]))
def test_whatever_is_wrong_with_a_record_it_is_one_bad_record(read, changes, start):
    examples = read(GOOD, start | changes, GOOD, on_bad_record="skip")
    assert [e.question for e in examples][::-2][:1] == ["What?"]
    assert len(examples) in (2, 3) and len({e.id for e in examples}) == len(examples)


def test_deeply_nested_values_are_one_bad_record(tmp_path):
    for depth in (100, 300, 600, 900):
        nested = "[" * depth + "]" * depth
        (tmp_path / "f.json").write_text(f'[{{"question": "Q?", "answer": {nested}, "id": {nested}}}]')
        with pytest.raises(UserError, match=r"f\.json"):
            load_examples(tmp_path / "f.json", tmp_path)


def test_ids_are_different_and_say_where_they_come_from(read):
    ids = ["x", "x", None, "x", "x#2", 12, 12.5, ""]
    examples = read(*(GOOD | {"id": value} for value in ids), GOOD, GOOD | {"question_id": "q", "id": "x", "idx": 1})
    assert [e.id for e in examples] == ["x", "x#2", "2", "x#3", "x#2#2", "12", "12.5", "7", "8", "q"]


def test_an_id_does_not_depend_on_other_records_being_good(read):
    records = [GOOD | {"id": "x"}, {"id": "x"}, GOOD | {"id": "x"}]
    assert [e.id for e in read(*records, on_bad_record="skip")] == ["x", "x#3"]


def test_the_first_ten_bad_records_are_shown_with_their_ids_and_all_are_counted(read):
    with pytest.raises(UserError, match="25 bad of 26 records") as caught:
        read(GOOD, *({"id": f"q{i}"} for i in range(25)))
    message = str(caught.value)
    assert [f"'q{i}'" in message for i in range(25)] == [True] * 10 + [False] * 15
    assert "and 15 more" in message


def test_images_are_decoded_only_on_request_but_must_be_there(read, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert len(read(GOOD | {"image": "broken.png"}, verify_images=False)) == 1
    for image in ("broken.png", ["a.png", "broken.png"]):
        with pytest.raises(UserError, match=r"record 0.*broken\.png"):
            read(GOOD | {"image": image})
    with pytest.raises(UserError, match=r"absent\.png"):
        read(GOOD | {"image": "absent.png"}, verify_images=False)


def test_the_limit_counts_good_records_and_checks_none_after_them(read):
    decoded = []
    records = [CHOSEN | {"id": i} for i in range(5)]
    records[1], records[4] = {}, {}
    assert [e.id for e in read(*records, on_bad_record="skip", limit=2, verify=decoded.append)] == ["0", "2"]
    assert len(decoded) == 2
    assert len(read(*records, limit=1)) == 1
    assert len(read(*records, on_bad_record="skip", limit=100)) == 3
    with pytest.raises(UserError, match="limit"):
        read(*records, limit=0)


def test_skipping_every_record_is_an_error(read):
    with pytest.raises(UserError, match="2 bad of 2 records"):
        read({}, {}, on_bad_record="skip")


def test_a_source_is_chosen_by_the_record_or_named(read):
    marked = {"question": "Who? The choices are 0 : a, 1 : b", "steps": [], "answer": "1"}
    assert [len(e.choices) for e in read(marked, GOOD)] == [2, 0]
    (example,) = read(marked, source="records")
    assert (example.choices, example.answer) == ((), "1")
    with pytest.raises(UserError, match="'record' is none of the sources, did you mean records"):
        read(GOOD, source="record")


OTHER = {
    "prompt": "What?",
    "cot": "So. Thus.",
    "label": 1,
    "options": ["a cat", "a dog"],
    "photo": "b.png",
    "uid": "u",
    "hint": "It barks.",
    "image": "a.png",
    "solution": "",
}
COLUMNS = {
    "question": "prompt",
    "steps": "cot",
    "answer": "label",
    "choices": "options",
    "images": "photo",
    "id": "uid",
}


def test_columns_of_any_name(read, tmp_path):
    (example,) = read(OTHER | {"id": "not this"}, columns=COLUMNS)
    assert (example.id, example.question, example.steps) == ("u", "What?", ("So.", "Thus."))
    assert (example.choices, example.answer_index) == (("a cat", "a dog"), 1)
    assert example.images == (tmp_path / "b.png",)  # what is not named is no matter
    own = {"question": "Q?", "answer": "A", "id": "own", "passage": "x"}
    (example,) = read(own, columns={"answer": "passage"})
    assert (example.id, example.question, example.answer) == ("own", "Q?", "x")


def test_a_column_that_is_missing_is_a_bad_record(read):
    bad = {key: value for key, value in OTHER.items() if key != "cot"}
    with pytest.raises(UserError, match=r"record 1.*columns\.steps is 'cot', and there is no such column.*prompt, l"):
        read(OTHER, bad, columns=COLUMNS)
    assert len(read(OTHER, 7, bad, columns=COLUMNS, on_bad_record="skip")) == 1


def test_columns_go_with_a_source_that_is_named(read):
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a cat"}]
    (example,) = read({"chat": said, "conversations": said, "cot": "So."}, columns={"steps": "cot"}, source="messages")
    assert (example.question, example.steps, example.answer) == ("What?", ("So.",), "a cat")


def test_a_run_reads_as_its_config_says(tmp_path):
    (tmp_path / "f.json").write_text(f"[{json.dumps(OTHER | {'photo': None})}]")
    keys = {"data_dir": str(tmp_path), "train_path": "f.json", "steps_from": "rationales"}
    config = RunConfig(mode="cot_train", name="r", model_id="m", columns=COLUMNS, **keys)
    (example,) = load_of_run(config, "f.json", None)
    assert (example.steps, example.answer) == (("So. Thus.",), "a dog")
    with pytest.raises(UserError, match="limit"):
        load_of_run(config, "f.json", 0)


def test_answers_are_judged_as_the_source_says_unless_asked(read):
    number = GOOD | {"answer": "$1,234"}
    assert [e.judge for e in read(number, GOOD | {"answer": 5}, CHOSEN)] == ["text", "number", "text"]
    assert [e.judge for e in read(number, GOOD | {"answer": None}, answer_type="number")] == ["number", "number"]
    assert [e.judge for e in read(GOOD | {"answer": 5}, answer_type="text")] == ["text"]
    with pytest.raises(UserError, match=r"record 0.*answer_type: number.*a cat"):
        read(GOOD, answer_type="number")


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_is_no_answer(read, number):
    with pytest.raises(UserError, match="'answer'"):
        read(GOOD | {"answer": number})


def test_examples_without_an_answer_cannot_be_trained_on(read, tmp_path):
    require_answers([], 2, tmp_path)
    examples = read(GOOD, *(GOOD | {"answer": None, "id": f"q{i}"} for i in range(12)))
    with pytest.raises(UserError, match=r"train\.json: 12 of 13 records have no answer.*'q0', .*'q9', \.\.\."):
        require_answers(examples[1:], len(examples), tmp_path / "train.json")


def test_a_method_that_learns_from_steps_needs_some(read, tmp_path):
    require_steps(read(GOOD | {"steps": []}, GOOD | {"steps": ["a"]}), tmp_path, "sim_cot")
    with pytest.raises(UserError, match=r"train\.json: none of 2 records has written steps, from which sim_cot learns"):
        require_steps(read(GOOD | {"steps": []}, GOOD | {"steps": []}), tmp_path / "train.json", "sim_cot")
