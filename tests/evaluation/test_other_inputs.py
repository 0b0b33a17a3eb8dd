from dataclasses import replace

import pytest

from multicoco.data.example import Example, Turn
from multicoco.errors import UserError
from multicoco.evaluation.other_inputs import other_inputs


def question(i: int, *images, text: str = "What?") -> Example:
    return Example(f"q{i}", text, images, (), (), "cat", None)


class Stored:
    """A picture in a file of records, which holds it once a question."""

    def __init__(self, content: bytes):
        self.content = content

    def read(self) -> bytes:
        return self.content


@pytest.mark.parametrize("seed", range(4))
def test_eight_questions_about_two_pictures_are_given_the_other_one(seed, tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"ab"[i % 2 : i % 2 + 1])  # each a file of its own
    kinds = (lambda i: b"ab"[i % 2 : i % 2 + 1], lambda i: tmp_path / f"{i}.png", lambda i: Stored(b"ab"[i % 2 :][:1]))
    for kind in kinds:
        donors = other_inputs(seed, [question(i, kind(i)) for i in range(8)])
        assert all(donor is not None and donor % 2 != i % 2 for i, donor in enumerate(donors))
    # several images are other ones in another order
    assert other_inputs(seed, [question(0, b"a", b"b"), question(1, b"b", b"a"), question(2, b"a", b"b")])[0] == 1


@pytest.mark.parametrize("seed", range(4))
def test_texts_are_given_other_texts_and_pictures_pictures(seed):
    texts = [question(i, text=f"What,{' ' * (1 + i // 3)}{i % 3}?") for i in range(6)]
    donors = other_inputs(seed, [*texts, question(6, b"a"), question(7, b"b")])
    assert all(donor is not None and donor < 6 and donor % 3 != i % 3 for i, donor in enumerate(donors[:6]))
    assert donors[6:] == [7, 6]
    what_came_before = [replace(question(i), earlier=(Turn(f"{i % 2}?", "Yes."),)) for i in range(4)]
    assert all(donor is not None and donor % 2 != i % 2 for i, donor in enumerate(other_inputs(seed, what_came_before)))


def test_where_there_is_no_other_one_there_is_none():
    assert other_inputs(0, [question(i, b"a") for i in range(3)] + [question(3)]) == [None] * 4
    assert other_inputs(0, [question(0), question(1)]) == [None, None]


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        other_inputs(0, [question(0, tmp_path / "gone.png")])
