import pytest

from multicoco.evaluation.guessing import chance, listed_options


@pytest.mark.parametrize(
    ("question", "answer", "count"),
    [
        ("Every lempus is a rorpus. Tom is a terpus. Is Tom a lempus or scrompus?", "Tom is a lempus.", 2),  # ProsQA
        ("Is Tom a lempus or a scrompus?", "scrompus", 2),
        ("Is it red, a blue or the green? ", "blue", 3),
        ("Is it red, blue, or green?", "green", 3),
        ("In the picture, is it red or blue?", "blue", 2),
        ("True or false: Alex is not shy.", "False", 2),
        ("Alex is a wumpus. Is Alex shy, yes or no?", "no", 2),
        ("Which? (A) red (B) blue (C) a green one", "B", 3),
        ("Which?\nA. red\nB. blue", "blue", 2),
        ("How many apples or pears does he have?", "12", 0),  # lists nothing
        ("What is it?", "red", 0),
        ("Is Tom a lempus or a scrompus?", "neither", 0),
        ("Is Tom a small lempus or a big lempus?", "a small lempus", 0),  # cannot be told
        ("Is Tom a lempus or a scrompus?", None, 0),
        ("Sam or Kim went. Who was it?", "Sam", 0),
        ("See plan (A) or plan (C) there.", "A", 0),
    ],
)
def test_options_are_counted_where_the_answer_is_one_of_them(question, answer, count):
    assert listed_options(question, answer) == count


def question(choices=(), text="What is it?", gold="red") -> dict:
    return {"choices": list(choices), "question": text, "gold": gold}


def test_guessing_is_the_mean_over_the_questions():
    four, two = question("abcd", gold=1), question(text="Is it red or blue?")
    assert chance([four, two]) == pytest.approx((0.25 + 0.5) / 2)
    assert chance([four, question()]) is None
    assert chance([]) is None
