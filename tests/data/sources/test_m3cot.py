import pytest

from multicoco.errors import UserError

RELEASED = {
    "id": "physical-commonsense-1",
    "category": "physical-commonsense",
    "image_id": "commonsense-1",
    "question": "What should he do next?",
    "choices": ["Stop", "Run", "Sit"],
    "context": "",
    "answer": "B",
    "rationale": "The light is green. So he may go.",
    "split": "train",
    "image": "a.png",
    "domain": "commonsense",
    "topic": "physical-commonsense",
}


def test_the_released_form(read):
    first, second = read(RELEASED, RELEASED | {"context": " It is late. ", "id": "x"})
    assert (first.id, first.choices, first.answer_index, first.answer) == (
        RELEASED["id"],
        ("Stop", "Run", "Sit"),
        1,
        "Run",
    )
    assert first.steps == ("The light is green.", "So he may go.") and first.image.name == "a.png"
    assert second.question == "What should he do next?\nContext: It is late."
    assert read(RELEASED, steps_from="rationales")[0].steps == ("The light is green. So he may go.",)


def test_a_record_without_an_answer(read):
    (example,) = read(RELEASED | {"answer": None, "rationale": None})
    assert (example.answer, example.steps) == (None, ())


def test_a_record_may_have_no_image_if_it_says_so(read):
    """Some of the released ones have none; their image_id stays."""
    assert read(RELEASED | {"image": None})[0].images == ()
    with pytest.raises(UserError, match="'image' is missing"):  # it may be elsewhere
        read({key: value for key, value in RELEASED.items() if key != "image"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": "D"}, "one of A, B, C, found 'D'"),
        ({"answer": "Run"}, "one of A, B, C"),
        ({"answer": 1}, "one of A, B, C"),
        ({"choices": ["Stop"]}, "at least 2"),
        ({"context": 5}, "'context'"),
        ({"rationale": 5}, "'rationale'"),
    ],
)
def test_bad_records(read, changes, reason):
    with pytest.raises(UserError, match=reason):
        read(RELEASED | changes)
