"""What a session reads and prints; the model is a stand-in."""

import json

import pytest

from multicoco.ask.asker import Answer
from multicoco.ask.session import How, Question, questions_of, run
from multicoco.errors import UserError


class Stub:
    """Answers with what it was asked."""

    modes = ("cot", "coconut")

    def ask(self, image, question, choices, *, mode, streamer=None, latents=None, intervene=(), lens=False) -> Answer:
        if question == "bad":
            raise UserError("no such picture")
        thoughts = latents or 0
        words = [[("red", 0.75), (" ", 0.25)]] if lens else []
        under = {spec: Answer(mode, None, "", 1, thoughts, 0.1, True) for spec in intervene}
        chances = {choice: 0.5 for choice in choices}
        return Answer(mode, question, f"Answer: {question}\n", 3, thoughts, 0.25, False, chances, words, under)


def how(modes=("coconut",), latents=None, intervene=(), lens=False, as_json=False) -> How:
    return How(modes, latents, intervene, lens, as_json)


def test_lines_are_questions_as_text_or_json():
    lines = ["What?\n", "\n", '{"question": "Where?", "image": "b.png", "choices": ["x", "y"]}', '{"question": "{"}']
    assert list(questions_of(lines, "a.png", ["c"])) == [
        Question("What?", "a.png", ["c"]),
        Question("Where?", "b.png", ["x", "y"]),
        Question("{", "a.png", ["c"]),
    ]


@pytest.mark.parametrize(
    "line", ['{"question"', '{"image": "a"}', '{"question": "a", "choice": []}', '{"question": 1}']
)
def test_a_line_that_is_no_question_is_named(line):
    [error] = questions_of(["", line], None, ())
    assert isinstance(error, UserError) and "line 2" in str(error)


def test_answers_are_printed_with_their_cost_words_and_changes(capsys):
    run(Stub(), [Question("q", None, ["a", "b"])], how(latents=2, intervene=["zero"], lens=True))
    assert capsys.readouterr().out.splitlines() == [
        "coconut: Answer: q",
        "  -> q (3 tokens, 2 thoughts, 0.2 s)",
        "  a 0.500, b 0.500",
        "  thought 1: red 0.75 ' ' 0.25",
        "  under zero: -> no clear answer (1 tokens, 2 thoughts, 0.1 s, cut off)",
    ]


def test_modes_without_thoughts_are_asked_without_what_concerns_them(capsys):
    run(Stub(), [Question("q")], how(modes=("cot", "coconut"), latents=2, as_json=True))
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [(answer["mode"], answer["thoughts"]) for answer in answers] == [("cot", 0), ("coconut", 2)]


def test_a_question_that_fails_ends_no_session(capsys):
    with pytest.raises(UserError, match="1 of 2 questions could not be asked"):
        run(Stub(), [Question("bad"), Question("good")], how())
    printed = capsys.readouterr()
    assert printed.err == "error: no such picture\n" and "good" in printed.out
    with pytest.raises(UserError, match="there is no question"):
        run(Stub(), [], how())
