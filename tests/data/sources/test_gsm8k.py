import pytest

from multicoco.errors import UserError

RELEASED = {
    "question": "Natalia sold 48 clips in April and half as many in May. How many altogether?",
    "answer": "In May she sold 48/2 = <<48/2=24>>24.\n\nAltogether 48+24 = <<48+24=72>>72 clips.\n#### 1,072",
}


def test_the_released_form(read):
    (example,) = read(RELEASED)
    assert example.steps == ("In May she sold 48/2 = <<48/2=24>>24.", "Altogether 48+24 = <<48+24=72>>72 clips.")
    assert (example.answer, example.answer_index, example.choices, example.judge) == ("1,072", None, (), "number")


def test_an_answer_that_is_no_number_is_judged_as_text(read):
    (example,) = read(RELEASED | {"answer": "So.\n#### 5 or 6"})
    assert (example.answer, example.judge) == ("5 or 6", "text")


def test_the_authors_form_of_it_is_records(read):
    (example,) = read({"question": "Q?", "steps": ["<<48/2=24>>"], "answer": "24"}, answer_type="number")
    assert (example.steps, example.answer, example.judge) == (("<<48/2=24>>",), "24", "number")


def test_nothing_behind_the_mark_is_a_bad_record(read):
    with pytest.raises(UserError, match="'answer after ####'"):
        read(RELEASED | {"answer": "So.\n#### "})


def test_a_record_with_another_part_of_the_question_is_refused(read):
    with pytest.raises(UserError, match="'image'"):
        read(RELEASED | {"image": "a.png"})
