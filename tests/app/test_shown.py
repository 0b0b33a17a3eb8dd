"""What is shown of hostile texts, and where attention is drawn."""

import base64
import io
import re
from html import unescape

import pytest
from pages import HOSTILE
from PIL import Image

from multicoco.app import shown
from multicoco.ask.asker import Answer
from multicoco.ask.attention import Seen
from multicoco.errors import UserError


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_whatever_texts_say_is_shown_as_text(text):
    under = {text: Answer("coconut", text, text, 1, 2, 0.5, False, {text: 1.0})}
    answer = Answer("coconut", text, text, 1, 2, 0.5, True, {text: 1.0}, [[(text, 0.5)]], under, [1.0])
    pages = [
        shown.show_message(text),
        shown.show_answers([answer]),
        shown.show_thoughts(answer, [], [], text),
        shown.show_changed(answer),
    ]
    plain = text.encode("utf-8", "replace").decode()[:20_000]
    for page in pages:
        page.encode()
        elements = set(re.findall(r"<(\w+)", page))
        assert elements <= {"p", "div", "section", "h3", "h4", "pre", "table", "tr", "th", "td", "span", "small"}
        assert plain in unescape(page) and len(page) < 200_000


def test_attention_is_drawn_where_it_is(tmp_path):
    Image.new("RGB", (90, 60), "white").save(tmp_path / "a.png")
    answer = Answer("coconut", "a", "a", 1, 1, 0.5, False, words=[[("a", 1.0)]], norms=[2.0])
    seen = Seen(0.75, [[[0.0, 0.5, 0.0], [0.0, 0.0, 0.25]]], [[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    page = shown.show_thoughts(answer, [seen], [tmp_path / "a.png"], "")
    assert "75.0 % of its attention" in page and "norm 2.00" in page
    last, rollout = (
        Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
        for content in re.findall(r"base64,([^\"]+)", page)
    )
    assert last.size == rollout.size == (90, 60)

    def blue(image, column, row):  # which the colour has none of
        return image.getpixel((30 * column + 15, 30 * row + 15))[2]

    assert blue(last, 1, 0) < 60 < blue(last, 2, 1) < 180 < min(blue(last, 0, 0), blue(last, 2, 0), blue(last, 1, 1))
    assert blue(rollout, 0, 0) < 60 and blue(rollout, 1, 0) > 220


def test_a_picture_that_is_none_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png: cannot be read as an image"):
        shown.show_pictures([tmp_path / "a.png"])
