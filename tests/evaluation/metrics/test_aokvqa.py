"""Cases worked by hand, by the rule of A-OKVQA's own evaluation."""

import pytest

from multicoco.data.example import Example
from multicoco.evaluation.metrics import official_predictions, official_scores

CHOICES = ("cat", "dog", "dog", "owl")


def question(name, answer_index=1, direct=(), difficult=None, openly=False) -> Example:
    answer = None if answer_index is None else CHOICES[answer_index]
    groups = {} if difficult is None else {"difficult_direct_answer": difficult}
    if openly:
        return Example(name, "Q?", (), (), (), answer, None, direct, metric="aokvqa", groups=groups)
    return Example(name, "Q?", (), CHOICES, (), answer, answer_index, direct, metric="aokvqa", groups=groups)


def said(extracted, text=None) -> dict:
    return {"extracted": extracted, "said": text}


def test_multiple_choice_compares_texts():
    examples = [question("a"), question("b"), question("c"), question("d"), question("test", None)]
    samples = [said(1), said(2), said(0), said(None), said(3)]  # the two dogs are the same text
    assert official_scores(samples, examples) == {"aokvqa/multiple_choice": 0.5, "aokvqa/multiple_choice_n": 4}
    assert official_predictions(samples, examples) == {
        "aokvqa": {
            "a": {"multiple_choice": "dog"},
            "b": {"multiple_choice": "dog"},
            "c": {"multiple_choice": "cat"},
            "d": {"multiple_choice": ""},
            "test": {"multiple_choice": "owl"},
        }
    }


GIVEN = ("dog", "dog", "dog", "dog", "puppy", "puppy", "hound", "Dog", "a dog", "animal")


@pytest.mark.parametrize(
    ("text", "credit"),
    [("dog", 1), ("puppy", 2 / 3), ("hound", 1 / 3), ("Dog", 1 / 3), ("a dog", 1 / 3), ("dogs", 0), ("dog.", 0)],
)
def test_a_direct_answer_counts_a_third_for_each_annotator_who_gave_just_it(text, credit):
    (example,) = [question("a", direct=GIVEN, difficult="false", openly=True)]
    scores = official_scores([said("whatever", text)], [example])
    assert scores == {"aokvqa/direct_answer": pytest.approx(credit), "aokvqa/direct_answer_n": 1}


def test_direct_answers_are_averaged_over_questions_that_are_not_difficult():
    difficulties = ["false", "true", None, "false"]
    examples = [
        question(str(place), direct=GIVEN, difficult=difficult, openly=True)
        for place, difficult in enumerate(difficulties)
    ]
    samples = [said("dog", "dog"), said("dog", "dog"), said("puppy", "puppy"), said(None)]
    scores = official_scores(samples, examples)
    assert scores == {"aokvqa/direct_answer": pytest.approx((1 + 2 / 3 + 0) / 3), "aokvqa/direct_answer_n": 3}
    predictions = official_predictions(samples, examples)["aokvqa"]
    assert predictions["1"] == {"direct_answer": "dog"} and predictions["3"] == {"direct_answer": ""}


def test_questions_without_known_answers_have_no_score_but_predictions():
    example = question("t", None)
    assert official_scores([said(0)], [example]) == {}
    assert official_predictions([said(0)], [example]) == {"aokvqa": {"t": {"multiple_choice": "cat"}}}


def test_other_sets_have_neither():
    example = Example("x", "Q?", (), CHOICES, (), "dog", 1)
    assert official_scores([said(1)], [example]) == {} == official_predictions([said(1)], [example])
