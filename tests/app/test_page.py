"""What the buttons do, and the page in a real browser."""

import re
import struct
import zlib

import pytest
from pages import HOSTILE
from PIL import Image

import multicoco
from multicoco.app import page as module
from multicoco.app.page import Deeds, write_choices
from multicoco.app.server import open_page
from multicoco.ask.session import read_choices
from multicoco.engine.deepspeed import free_port

AS_IT_IS = "as it is"


@pytest.fixture(scope="module")
def deeds(asker, examples) -> Deeds:
    return Deeds(asker, examples)


def asked(deeds, example, latents="", question=None):
    """The last of what is yielded: problem, answers, thoughts, changed, panel, switches."""
    text = example.question if question is None else question
    *_, last = deeds.answer([*example.images], text, write_choices(example.choices), latents)
    return last


def huge_png() -> bytes:
    """100,000 x 100,000 pixels in some bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("choices", [[], ["red", "blue, dark", 'a "b"', " c"], ["one"]])
def test_choices_are_read_as_they_are_written(choices):
    assert read_choices(write_choices(choices)) == [choice.strip() for choice in choices]


def test_every_mode_answers_and_thoughts_have_switches(deeds, examples):
    [*steps] = deeds.answer([*examples[0].images], examples[0].question, write_choices(examples[0].choices), "")
    for n, (problem, answers, *_) in enumerate(steps):  # one more is there each time
        assert not problem and re.findall(r"<h3>(\w+)</h3>", answers) == ["vanilla", "cot", "coconut"][: n + 1]
    _, answers, thoughts, changed, panel, *switches = steps[-1]
    assert "is being asked" not in answers and "The 4 thoughts of coconut" in thoughts and not changed
    assert thoughts.count("<img") == 8 and panel["visible"]
    assert [switch["visible"] for switch in switches] == [True] * 4 + [False] * 20


def test_the_thoughts_that_are_switched_are_changed_together(deeds, examples, asker):
    example, other = examples[0], str(examples[1].images[0])
    kinds = ["zero", AS_IT_IS, "another picture's", AS_IT_IS, *[AS_IT_IS] * 20]
    question = ([*example.images], example.question, write_choices(example.choices), "")
    problem, changed = deeds.intervene(*question, other, *kinds)
    names = re.findall(r"<h3>(.*?)</h3>", changed)
    assert not problem and names == ["its own thoughts", f"only(1, zero) + only(3, transplant={other})"]
    specs = ["only(1, zero)", f"only(3, transplant={other})"]
    answer = asker.ask(example.images, example.question, example.choices, intervene=[specs])
    shown = [float(chance) for chance in re.findall(r"<td>(\d\.\d{3})</td>", changed)]
    expected = [*answer.chances.values(), *answer.under[" + ".join(specs)].chances.values()]
    assert shown == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("question", "latents", "expected"),
    [(" ", "", "there is no question"), (None, "two", "two is no number"), (None, "-1", "-1 is no number")],
)
def test_what_cannot_be_asked_is_said(deeds, examples, question, latents, expected):
    problem, answers, thoughts, _, panel, *_ = asked(deeds, examples[0], latents, question)
    assert expected in problem and "<h3>" not in answers and not thoughts and not panel["visible"]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [((AS_IT_IS,), "no thought is to be changed"), (("another picture's",), "there is no other picture")],
)
def test_what_cannot_be_changed_is_said(deeds, examples, kinds, expected):
    problem, changed = deeds.intervene([], examples[0].question, "", "", None, *kinds)
    assert expected in problem and not changed


def test_attention_that_cannot_be_had_costs_nothing_else(deeds, examples, monkeypatch):
    monkeypatch.setattr("multicoco.ask.attention._MOST_NUMBERS", 1)
    problem, _, thoughts, *_ = asked(deeds, examples[0])
    assert not problem and "Attention is not shown" in thoughts and "norm" in thoughts and "<img" not in thoughts


@pytest.mark.parametrize("content", [b"", b"no picture", huge_png()], ids=["empty", "broken", "huge"])
def test_an_upload_that_is_no_picture_is_said_and_not_asked_without(deeds, examples, tmp_path, content):
    (tmp_path / "<b>.png").write_bytes(content)
    sources, shown, problem = deeds.take_upload(str(tmp_path / "<b>.png"))
    assert not shown and "&lt;b&gt;.png: cannot be read as an image" in problem
    *_, (again, *_) = deeds.answer(sources, "What?", "", "")
    assert "cannot be read as an image" in again
    assert deeds.take_upload(None) == ([], "", "")


def test_a_model_without_thoughts_is_asked_in_its_modes(trained_home, examples, one_thread):
    deeds = Deeds(multicoco.load(trained_home / "model"), examples)
    problem, answers, thoughts, _, panel, *_ = asked(deeds, examples[0])
    assert re.findall(r"<h3>(\w+)</h3>", answers) == ["vanilla", "cot"]
    assert not problem and not thoughts and not panel["visible"]


def test_a_question_is_asked_and_its_thoughts_changed_by_clicks(asker, examples, browser, tmp_path):
    served, url = open_page(asker, examples, "127.0.0.1", free_port())
    context = browser.new_context(viewport={"width": 1600, "height": 900})
    context.set_default_timeout(20_000)
    page, said, elsewhere = context.new_page(), [], []
    page.on("console", lambda message: message.type == "error" and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or elsewhere.append(request.url))
    try:
        page.goto(url)
        page.get_by_label("Examples").click()
        page.get_by_role("option").nth(1).click()
        page.locator("#shown img").wait_for()
        assert page.get_by_label("Question", exact=True).input_value() == examples[1].question
        page.click("#ask")
        page.locator(".mc-maps img").nth(7).wait_for()
        assert page.locator("#answers h3").all_inner_texts() == ["vanilla", "cot", "coconut"]
        page.get_by_label("thought 2", exact=True).click()
        page.get_by_role("option", name="zero").click()
        page.click("#change")
        page.locator("#changed h3", has_text="only(2, zero)").wait_for()

        broken, fine = tmp_path / "broken.png", tmp_path / "fine.png"
        broken.write_bytes(b"no picture")
        Image.new("RGB", (90, 60), "red").save(fine)
        page.set_input_files("#picture input[type=file]", broken)
        page.locator("#problem", has_text="broken.png: cannot be read as an image").wait_for()
        assert page.locator("#shown img").count() == 0
        page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
        page.locator("#problem", has_text="cannot be read").wait_for(state="hidden")
        page.set_input_files("#picture input[type=file]", fine)
        page.locator("#shown img").wait_for()

        page.get_by_label("Question", exact=True).fill(HOSTILE["end of script"])
        page.get_by_label("Choices").fill(f"{HOSTILE['script']},b")
        page.click("#ask")
        page.locator("#answers th", has_text=HOSTILE["script"]).first.wait_for()
        page.locator(".mc-maps img").nth(7).wait_for()
        assert all(page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)"))
        for width in (400, 1600):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not said and not elsewhere
    finally:
        context.close()
        served.close()


def test_a_text_model_is_given_no_picture(asker, monkeypatch):
    monkeypatch.setattr(type(asker), "sees_pictures", False)
    blocks = module.build_page(asker, []).blocks.values()
    assert [block.visible for block in blocks if type(block).__name__ == "File"] == [False, False]
