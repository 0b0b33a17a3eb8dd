import pytest

from multicoco.data.example import Example
from multicoco.errors import UserError
from multicoco.evaluation.priors import asked_with

CHOICES = ("cat", "dog")


def question(name: str, *images: bytes, choices=CHOICES, places=()) -> Example:
    index = 0 if choices else None
    return Example(name, f"What, {name}?", images, choices, ("So.",), "cat", index, (), "text", places)


EXAMPLES = [
    question("a", b"1"),
    question("b", b"1"),
    question("c", b"2", b"3", places=(2, 4)),
    question("d"),
    question("e", b"4"),
]


def kept(example: Example) -> tuple:
    return (example.id, example.choices, example.steps, example.answer, example.answer_index)


@pytest.mark.parametrize("inputs", ["all", "question_only", "choices_only", "other_image"])
def test_what_answers_are_judged_by_stays(inputs):
    asked = asked_with(inputs, EXAMPLES, seed=1)
    assert [*map(kept, asked)] == [*map(kept, EXAMPLES)]


def test_parts_are_left_out():
    assert asked_with("all", EXAMPLES, 1) is EXAMPLES
    assert [(e.question, e.images, e.image_places) for e in asked_with("question_only", EXAMPLES, 1)] == [
        (example.question, (), ()) for example in EXAMPLES
    ]
    assert {(e.question, e.images, e.image_places) for e in asked_with("choices_only", EXAMPLES, 1)} == {("", (), ())}


@pytest.mark.parametrize("seed", range(6))
def test_another_image_is_another_one(seed):
    asked = asked_with("other_image", EXAMPLES, seed)
    given = {example.images for example in EXAMPLES if example.images}
    for before, after in zip(EXAMPLES, asked, strict=True):
        assert after.question == before.question
        assert bool(after.images) == bool(before.images)
        assert not before.images or (after.images in given and after.images != before.images)
    assert asked == asked_with("other_image", EXAMPLES, seed)  # on any rank


def test_seeds_draw_other_images():
    assert len({tuple(e.images for e in asked_with("other_image", EXAMPLES, seed)) for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("inputs", "examples", "reason"),
    [
        ("question_only", EXAMPLES[3:4], "no question has an image"),
        ("other_image", EXAMPLES[3:4], "no question has an image"),
        ("other_image", EXAMPLES[:2], "no other image for question 'a'"),
        ("choices_only", [*EXAMPLES, question("open", choices=())], "question 'open' has no choices"),
    ],
)
def test_what_would_change_nothing_is_refused(inputs, examples, reason):
    with pytest.raises(UserError, match=reason):
        asked_with(inputs, examples, seed=0)
