import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from multicoco.data.example import Example
from multicoco.data.prompt import choice_label
from multicoco.evaluation.answers import answer_line, extract_answer, is_correct, normalise

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
    assume("answer" not in f"{answer} {reasoning}".lower())
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
        # what follows "Answer:" counts, in any case
        ("I think. ANSWER : b", "letter", 1),
        ("**Answer**: **B**", "letter", 1),
        ("Answer: B\nIt cannot be the cat.", "letter", 1),  # on its first line
        ("Answer:\n\nB", "letter", 1),
        # without one, what follows "answer is"
        ("The answer is (B).", "letter", 1),
        ("Answer: B\nThe answer is plain to see.", "letter", 1),
        # without either, the last line
        ("It could be A.\nB", "letter", 1),
        ("dog\n\n", "text", 1),
        ("A cat?\n### dog", "text", 1),
        # several must agree
        ("Answer: B\nAnswer: B. dog", "letter", 1),
        ("The answer is easy to see.\nThe answer is B", "letter", 1),
        ("Answer: A\nAnswer: B", "letter", None),
        ("Answer: B\nQuestion: What?\nAnswer: it sleeps", "letter", None),
        ("The answer is A, so the answer is B", "letter", None),
        # the forms of a letter
        ("Answer: (B)", "letter", 1),
        ("Answer: B. dog", "letter", 1),
        ("Answer: B) Dog.", "letter", 1),
        ("Answer: B - the dog", "letter", 1),
        ("Answer: It is B.", "letter", 1),
        ("Answer: the correct answer is option B", "letter", 1),
        ("Answer: B: cat", "letter", None),
        ("Answer: E", "letter", None),
        ("Answer: But why", "letter", None),
        ("Answer: A-frame", "letter", None),
        ("Answer: A.M.", "letter", None),
        ("Answer: A dog", "letter", 1),  # an article
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
        ("Answer: it must be the cat", "text", 0),
        ("Answer: a category", "text", None),
        ("Answer: 12.5", "text", None),
        # the label asked for comes first, then text; another label is none
        ("Answer: 12", "index", 3),
        ("Answer: dog", "letter", 1),
        ("Answer: dog", "index", 1),
        ("Answer: B", "text", None),
        ("Answer: B", "index", None),
        ("Answer: 0", "letter", None),
        ("Answer: a", "letter", 0),
        ("Answer: a", "text", None),
        # a sentence or a reason may follow
        ("Answer: B. It barks.", "letter", 1),
        ("Answer: dog because it barks", "text", 1),
        ("Answer: dog. It barks.", "text", 1),
        ("Answer: B. It is the cat.", "letter", None),
        ("Answer: B. Or A.", "letter", None),
        ("Answer: B, I guess", "letter", None),
        ("", "letter", None),
        ("Answer:", "letter", None),
    ],
)
def test_rules(text, answer_format, expected):
    assert extract_answer(text, PETS, answer_format) == expected


HEDGES = [
    "B or C", "B and C", "B, C", "B/C", "BC", "A, no, B", "A. No, B.", "A... wait, B", "not B", "Not B.", "B?",
    "maybe B", "anything but B",
    "either A or B", "B is wrong", "isn't B", "neither", "B. Just kidding, A.", "all of them", "-1",
    "dog or cat", "cat, dog", "dog/cat", "not dog", "no dog", "not a dog", "anything but dog", "a dog? No, a cat",
    "dog, no, cat", "dog cat", "dog and cat", "rather the dog than the cat", "dog is wrong", "a cat is no dog", "doggy",
    "cats and dogs", "I see a dog here", "1 or 2", "0, 1", "not 1", "1?", "1 and 2", "1-2", "1, no, 0", "more than 1",
]  # fmt: skip


@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize("said", HEDGES)
def test_hedges_negations_and_several_answers_are_no_answer(said, answer_format):
    for marker in ("Answer: ", "The answer is ", "Hm.\n"):
        assert extract_answer(f"{marker}{said}", PETS, answer_format) is None, marker


@given(
    said=st.lists(
        st.sampled_from(
            [*PETS, *"ABCD0123", "or", "and", "not", "no,", "wait", "it is", "the", "so", "is", "maybe", "?"]
        ),
        min_size=1,
        max_size=7,
    ),
    answer_format=st.sampled_from(FORMATS),
)
def test_babble_that_names_two_choices_gives_none(said, answer_format):
    """Words that may name choices, in any order: where they name several in the form asked for, none is read."""
    index = extract_answer(f"Answer: {' '.join(said)}", PETS, answer_format)
    if index is None:
        return
    labels = {"letter": [*"ABCD"], "index": [*"0123"], "text": []}[answer_format]
    named = {PETS.index(word) for word in said if word in PETS}
    named |= {labels.index(word) for word in said if word in labels} - ({0} if "A" in said and len(said) > 1 else set())
    assert named <= {index}
    assert not {"or", "not", "no,", "maybe", "?"} & set(said)


@given(text=st.text(st.sampled_from("AB01 .,:?\nanswerANSWER#")), truncated=st.booleans())
def test_any_babble_that_is_read_says_so_in_one_line(text, truncated):
    index = extract_answer(text, ("yes", "no"), "letter", truncated=truncated)
    assert index is None or any("AB"[index] in line.upper() for line in text.splitlines())


@pytest.mark.parametrize("text", ["I see a dog and", "I see a dog.\nIt is", "So the dog", "B", "dog", "12", ""])
@pytest.mark.parametrize("answer_format", FORMATS)
def test_reasoning_that_was_cut_off_has_no_answer(text, answer_format):
    assert extract_answer(text, PETS, answer_format, truncated=True) is None
    assert extract_answer(text, [], answer_format, truncated=True) is None
    assert extract_answer(text, [], answer_format, truncated=True, judge="number") is None


@pytest.mark.parametrize(
    ("text", "answer_format", "expected"),
    [
        ("Answer: dog", "text", None),  # a dog house?
        ("Answer: dog\n", "text", 1),
        ("Answer: B", "letter", 1),
        ("Answer: B. d", "letter", None),
        ("Answer: B\nIt bar", "letter", 1),
        ("Answer: 1", "index", 1),
        ("Answer: B\nAnswer:", "letter", None),
    ],
)
def test_of_an_answer_that_was_cut_off_a_label_alone_is_clear(text, answer_format, expected):
    assert extract_answer(text, PETS, answer_format, truncated=True) == expected


def test_the_index_of_many_choices_may_have_been_cut_off():
    choices = [f"choice {i}." for i in range(12)]
    assert extract_answer("Answer: 1", choices, "index", truncated=True) is None
    assert extract_answer("Answer: 1", choices, "index") == 1
    assert extract_answer("Answer: L", choices, "letter", truncated=True) == 11


@pytest.mark.parametrize(("answer_format", "expected"), [("text", 1), ("index", 2), ("letter", 1)])
def test_choices_that_are_numbers_follow_the_format_asked_for(answer_format, expected):
    assert extract_answer("Answer: 2", ["1", "2", "3"], answer_format) == expected


@pytest.mark.parametrize("answer_format", ["text", "letter"])
@pytest.mark.parametrize(("choices", "said"), [(("1", "2", "3", "5"), "0"), (("10", "20", "30", "40"), "2")])
def test_a_number_that_is_no_choice_is_no_index(answer_format, choices, said):
    assert extract_answer(f"Answer: {said}", choices, answer_format) is None


ALIKE = [
    ("dear Mr. Lee,", "Dear Mr. Lee,"),
    (".5", "5", "50", "5."),
    ("They left!", "They left?", "They left"),
    ("The Band", "Band", "a band"),
    ("-5", "5", "5%", "$5"),
    ("5!", "120", "5"),
    ("x", "(x)", "X"),
    ("red", "red "),
]


@pytest.mark.parametrize("choices", ALIKE)
@pytest.mark.parametrize("answer_format", FORMATS)
def test_choices_that_are_alike_are_different_choices(choices, answer_format):
    for index, choice in enumerate(choices):
        said = choice if answer_format == "text" else choice_label(index, answer_format)
        extracted = extract_answer(f"Answer: {said}", choices, answer_format)
        for right in range(len(choices)):
            same = choices[right].split() == choice.split()
            assert is_correct(extracted, example(choices=choices, answer_index=right)) is same


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (("blue", "the red", "Red"), "red"),
        (("dear Lee", "Dear Lee"), "DEAR LEE"),
        (("5", "50"), ".5"),
        (("a b", "c"), "ab"),
        (("5", "120"), "5!"),
        (("5", "6"), "-5"),
        (("yes", "no"), "yes?"),
        (("", "x"), "."),
        (("", "x"), ""),
    ],
)
def test_a_looser_match_is_the_only_one_and_keeps_numbers(choices, said):
    assert extract_answer(f"Answer: {said}", choices, "text") is None


def test_of_a_text_that_stands_twice_the_first_is_read():
    assert extract_answer("Answer: red", ["blue", "red", "red"], "text") == 1
    assert extract_answer("Answer: Red.", ["blue", "red", "red"], "text") == 1


def test_open_questions_give_their_first_line():
    assert extract_answer("Tom is a lempus.\nAnswer: Tom is a lempus.\nmore", [], "text") == "tom is a lempus"
    assert extract_answer("Tom is a cat.\nTom is a lempus.", [], "text") == "tom is a lempus"
    assert extract_answer("Tom is a cat.\n### Tom is a lempus.", [], "text") == "tom is a lempus"  # Coconut's own code
    assert extract_answer("###", [], "text") == "###"
    assert extract_answer("Answer: a cat\nAnswer: a dog", [], "text") is None
    assert extract_answer("", [], "text") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Answer: 1,234", "1234"),
        ("Answer: $18", "18"),
        ("Answer: 18.0", "18"),
        ("Answer: She sold 72 clips.", "72"),
        ("24 and 48.\n#### 72", "72"),
        ("#### $1,072\n", "1072"),
        ("<<24*3=72>>\n### 72", "72"),
        ("Answer: #### -5", "-5"),
        ("Answer: 72\n#### 72.0", "72"),
        ("### Step 1\nAdd.\n72", "72"),
        ("The answer is 72.", "72"),
        ("Answer: 72 or 73", None),
        ("Answer: not 72", None),
        ("Answer: 70 + 2", None),
        ("Answer: 72\n#### 73", None),
        ("Answer: seven", None),
        ("Answer: 72?", None),
    ],
)
def test_open_numbers(text, number):
    assert extract_answer(text, [], "text", judge="number") == number


@pytest.mark.parametrize(
    ("said", "right", "marked"),
    [
        ("1,234", "1234", True),
        ("1234", "1,234", True),
        ("$18", "18", True),
        ("18.0", "18", True),
        ("72 dollars", "72", True),
        ("18.01", "18", False),
        ("-18", "18", False),
        ("1/2", "0.5", True),
        ("50%", "50", True),
        ("50%", "0.5", False),
        ("18 million", "18", False),
        ("none", "18", False),
        ("none", "none", True),
        (None, "18", False),
    ],
)
def test_numbers_are_right_by_their_value(said, right, marked):
    question = Example("1", "q", None, (), (), right, None, (), "number")
    assert is_correct(said, question) is marked


def test_multiple_choice_is_right_by_its_choice():
    assert is_correct(1, example()) is True
    assert is_correct(0, example()) is False
    assert is_correct(None, example()) is False
    assert is_correct(1, example(answer_index=None)) is None
    assert is_correct(0, example(choices=("red", "blue", "red"), answer_index=2)) is True  # the same text twice
    assert is_correct(0, example(choices=("Red", "blue", "red"), answer_index=2)) is False
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
    learnt = example(choices=(), answer_index=None, answer="blue", direct_answers=question.direct_answers)
    assert is_correct("red", learnt) is True and is_correct("blue", learnt) is False


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("So.\nAnswer: A Cat.\nmore", "A Cat."),
        ("Answer: cat\nAnswer:  The cat ", "The cat"),
        ("the answer is: a cat", ": a cat"),
        ("I look.\na Cat", "a Cat"),
        ("Answer:", ""),
        ("", ""),
    ],
)
def test_the_line_of_an_answer_is_as_it_was_written(text, line):
    assert answer_line(text).strip() == line
    if "nswer" not in text:
        assert answer_line(text, truncated=True) == ""
