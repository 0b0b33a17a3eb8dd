import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from multicoco.data.example import Example
from multicoco.data.prompt import choice_label
from multicoco.evaluation.answers import extract_answer, is_correct, normalise

FORMATS = ["letter", "index", "text"]
PETS = ("cat", "dog", "a hot dog", "12")
words = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), min_size=1, max_size=12)
choice_lists = st.lists(words, min_size=2, max_size=6, unique_by=normalise)


def example(choices=PETS, answer_index=1, answer=None, direct_answers=()) -> Example:
    answer = choices[answer_index] if choices and answer_index is not None else answer
    return Example("1", "q", None, choices, (), answer, answer_index, direct_answers)


@given(choices=choice_lists, answer_format=st.sampled_from(FORMATS), reasoning=words, data=st.data())
def test_what_the_model_is_trained_to_write_is_read_back(choices, answer_format, reasoning, data):
    assume(all(choice.strip() for choice in choices))
    index = data.draw(st.integers(0, len(choices) - 1))
    answer = choices[index] if answer_format == "text" else choice_label(index, answer_format)
    assume("answer" not in answer.lower())
    assert extract_answer(f"{reasoning}\nAnswer: {answer}", choices, answer_format) == index


@given(
    text=st.text(max_size=40), choices=st.lists(st.text(max_size=8), max_size=5), answer_format=st.sampled_from(FORMATS)
)
def test_any_text_gives_a_choice_or_nothing(text, choices, answer_format):
    extracted = extract_answer(text, choices, answer_format)
    if choices:
        assert extracted is None or extracted in range(len(choices))
    else:
        assert extracted is None or isinstance(extracted, str)


@pytest.mark.parametrize(
    ("text", "answer_format", "expected"),
    [
        # the last "Answer:" counts, in any case
        ("Answer: A\nAnswer: B", "letter", 1),
        ("I think. ANSWER : b", "letter", 1),
        ("**Answer**: **B**", "letter", 1),
        ("Answer: B\nIt cannot be the cat.", "letter", 1),  # on its first line
        # without one, what follows "answer is"
        ("The answer is (B).", "letter", 1),
        ("Answer: B\nThe answer is plain to see.", "letter", 1),
        # without either, the last line
        ("It could be A.\nB", "letter", 1),
        ("dog\n\n", "text", 1),
        # the forms of a letter
        ("Answer: (B)", "letter", 1),
        ("Answer: B. dog", "letter", 1),
        ("Answer: B: cat", "letter", 1),
        ("Answer: E", "letter", None),
        ("Answer: But why", "letter", None),
        ("Answer: A-frame", "letter", None),
        ("Answer: A.M.", "letter", None),
        # of an index
        ("Answer: 1", "index", 1),
        ("Answer: 1 : dog", "index", 1),
        ("Answer: (1)", "index", 1),
        ("Answer: 7", "index", None),
        ("Answer: 1.5", "index", None),
        ("Answer: 1:30", "index", None),
        ("Answer: " + "9" * 5000, "index", None),  # more digits than int() takes
        # of a text
        ("Answer: The dog.", "text", 1),
        ("Answer: hot dog", "text", 2),
        ("Answer: 12", "text", 3),
        # the form asked for comes first, then text, letter, index
        ("Answer: 12", "index", 3),
        ("Answer: dog", "letter", 1),
        ("Answer: B", "text", 1),
        ("Answer: 0", "letter", 0),
        ("Answer: a", "letter", 0),
        ("Answer: a", "text", None),  # an article
        # then the one choice that is mentioned
        ("Answer: it must be the cat, I say", "text", 0),
        ("Answer: either cat or dog", "text", None),
        ("Answer: a category", "text", None),
        ("Answer: 12.5 cats", "text", None),
        ("Answer: some hot dog food for a hot dog", "text", None),  # a dog, too
        # in the last line, else in the whole text, if nothing marks the answer
        ("No dog.\nSurely a cat", "letter", 0),
        ("I see a cat.\nIt sleeps", "letter", 0),
        ("I see a cat.\nAnswer: it sleeps", "letter", None),
        ("", "letter", None),
        ("Answer:", "letter", None),
    ],
)
def test_rules(text, answer_format, expected):
    assert extract_answer(text, PETS, answer_format) == expected


@pytest.mark.parametrize(("answer_format", "expected"), [("text", 1), ("index", 2), ("letter", 1)])
def test_choices_that_are_numbers_follow_the_format_asked_for(answer_format, expected):
    assert extract_answer("Answer: 2", ["1", "2", "3"], answer_format) == expected


@pytest.mark.parametrize("text", ["Answer: red", "Answer: the red", "Answer: it must be the red"])
def test_of_choices_with_the_same_text_the_first_is_read(text):
    assert extract_answer(text, ["blue", "the red", "Red"], "text") == 1


def test_open_questions_give_their_first_line():
    assert extract_answer("Tom is a lempus.\nAnswer: Tom is a lempus.\nmore", [], "text") == "tom is a lempus"
    assert extract_answer("Tom is a cat.\nTom is a lempus.", [], "text") == "tom is a lempus"
    assert extract_answer("", [], "text") is None


def test_multiple_choice_is_right_by_its_choice():
    assert is_correct(1, example()) is True
    assert is_correct(0, example()) is False
    assert is_correct(None, example()) is False
    assert is_correct(1, example(answer_index=None)) is None
    assert is_correct(0, example(choices=("Red", "blue", "red"), answer_index=2)) is True  # the same text twice
    assert is_correct(0, example(choices=(":)", ":("), answer_index=1)) is False


def test_open_questions_are_right_by_their_text():
    question = example(choices=(), answer_index=None, answer="Tom is a Lempus.")
    assert is_correct("tom is a lempus", question) is True
    assert is_correct("tom", question) is False
    assert is_correct(None, question) is False


def test_annotators_answers_need_three_who_agree():
    question = example(choices=(), answer_index=None, direct_answers=("Red", "red", "the red", "blue", "blue"))
    assert is_correct("red", question) is True
    assert is_correct("blue", question) is False
    assert is_correct("x", example(choices=(), answer_index=None)) is None
