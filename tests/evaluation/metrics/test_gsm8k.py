"""Cases worked by hand, read out of texts as an evaluation reads them."""

import pytest

from multicoco.data.example import Example
from multicoco.evaluation.answers import answer_line, extract_answer
from multicoco.evaluation.metrics import official_scores


@pytest.mark.parametrize(
    ("gold", "text", "number", "string"),
    [
        ("1234", "So.\nAnswer: 1,234", 1, 1),
        ("1,234", "So.\nAnswer: 1234", 1, 1),
        ("5", "Answer: $5", 1, 0),
        ("5", "Answer: 5.0", 1, 0),
        ("5", "Answer: 5", 1, 1),
        ("5", "So.\n#### 5", 1, 1),
        ("5", "Answer: 5 clips", 1, 0),
        ("5", "Answer: 50", 0, 0),
        ("5", "Answer: -5", 0, 0),
        ("5", "Answer: 5 or 6", 0, 0),
        ("0.5", "Answer: 1/2", 1, 0),
        ("5", "", 0, 0),
    ],
)
def test_numbers(gold, text, number, string):
    example = Example("x", "Q?", (), (), (), gold, None, judge="number", metric="gsm8k")
    extracted = extract_answer(text, (), "letter", judge="number")
    line = None if extracted is None else answer_line(text, judge="number")
    scores = official_scores([{"extracted": extracted, "said": line}], [example])
    assert (scores["gsm8k/number_match"], scores["gsm8k/string_match"]) == (number, string)
    assert scores["gsm8k/number_match_n"] == 1


def test_an_unknown_answer_is_in_no_score():
    example = Example("x", "Q?", (), (), (), None, None, judge="number", metric="gsm8k")
    assert official_scores([{"extracted": "5", "said": "5"}], [example]) == {}
