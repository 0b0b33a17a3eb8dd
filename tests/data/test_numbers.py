from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.data.numbers import single_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("1,234", 1234),
        ("1,234,567.50", "1234567.5"),
        ("$18", 18),
        ("-$18", -18),
        ("$-18.0", -18),
        ("18€", 18),
        ("18.0", 18),
        ("18.", 18),
        (".5", "0.5"),
        ("1/2", "0.5"),
        ("50%", 50),
        ("50 percent", 50),
        ("-5", -5),
        ("\u22125", -5),
        ("+5", 5),
        ("1e3", 1000),
        ("**72**", 72),
        ("x = -5", -5),
        ("She sold 72 clips.", 72),
        ("\\boxed{72}", 72),
        ("18 = 18.0", 18),
        ("0072", 72),
    ],
)
def test_numbers(text, value):
    assert single_number(text).value == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "72 or 73",
        "5 out of 10",
        "5-6",
        "12 - 5",
        "- 5",
        "3:30",
        "1.234,56",
        "5,00",
        "1,2",
        "1/0",
        "1 1/2",
        "2nd",
        "72kg",
        "H2O",
        "3x + 5",
        "5!",
        "5^2",
        "5²",
        "√16",
        "½",
        "--5",
        "-$-5",
        "9" * 5000,
        "5 million",
        "2 dozen",
        "minus 5",
        "half of 10",
        "more than 5",
        "at least 5",
        "5 times",
    ],
)
def test_what_is_no_single_number_is_none(text):
    assert single_number(text) is None


@given(st.text())
def test_any_text_has_a_number_or_none(text):
    number = single_number(text)
    assert number is None or single_number(number.written).value == number.value


@given(st.integers(), st.sampled_from(["{}", "{:,}", "${}", "{}.00", "{} dollars", "It is {}."]))
def test_a_number_is_read_as_it_was_written(value, form):
    assert single_number(form.format(value)).value == value


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [("50%", "50", True), ("50%", "0.5", False), ("0.5%", "0.5", False), ("0.5%", ".50 %", True), ("18", "18.0", True)],
)
def test_a_percent_sign_is_a_unit_but_not_behind_a_share(first, second, equal):
    assert single_number(first).equals(single_number(second)) is equal
