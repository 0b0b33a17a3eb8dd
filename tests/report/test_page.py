"""Pages as a real browser shows them: offline, without an error, with every picture, at any width."""

import json
from html import unescape
from pathlib import Path

import pytest
from pages import HOSTILE, opened, write_answers, write_questions, write_thoughts, write_touched, write_training

from multicoco.cli import main
from multicoco.evaluation.metrics import summarize
from multicoco.report.page import write_report


@pytest.fixture
def runs(tmp_path) -> Path:
    """runs/first, trained and evaluated in two modes and under two interventions, and runs/second, evaluated."""
    write_questions(tmp_path, 30)
    first = write_training(tmp_path / "runs" / "first")
    write_answers(
        first, "coconut", [place % 5 > 0 for place in range(30)], choice_logprobs=[-0.2, -1.7], gold_logprob=0.0
    )
    write_answers(first, "cot", [place % 2 > 0 or None for place in range(30)])
    write_touched(first, "coconut", "mean", "mean", [place % 5 > 2 for place in range(30)])
    write_touched(first, "coconut", "only-1-mean", "only(1, mean)", [place > 4 for place in range(30)], gold_logprob=-2)
    second = tmp_path / "runs" / "second"
    write_answers(second, "vanilla", [place > 20 for place in range(30)])
    (second / "config.yaml").write_text(
        "{mode: eval_only, method: vanilla, name: second, output_dir: runs, val_path: val.json, model_id: tiny}"
    )
    return tmp_path / "runs"


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_a_run_is_shown_with_its_curves_pictures_and_answers(runs, browser, width, scheme):
    file = write_report([runs / "first"])
    assert file == runs / "first" / "report.html"
    with opened(browser, file, width, scheme) as shown:
        assert shown.texts("#run-1 h1") == ["Run first finished"]
        titles = shown.texts("figcaption")
        assert {"Loss", "Throughput", "Calibration", "Interventions on the thoughts"} <= {*titles}
        assert "Accuracy by number of written steps" in titles
        sizes = shown.page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)")
        assert len(sizes) == len(titles) and min(sizes) > 60
        assert len(shown.texts(".question")) == 20
        names = [text.split()[1:-1] for text in shown.texts(".question >> nth=0 >> .chip")]
        assert names == [["coconut"], ["of", "2", "interventions", "change"], ["cot"]]
        assert "1 of 2 interventions" in shown.texts(".question >> nth=5")[0]
        assert "The hardest stage was stage 1: accuracy 0.600 after its first epoch, 0.700" in shown.texts("#run-1")[0]
        shown.page.click(".line >> nth=2")
        whole = shown.texts(".whole")[0]
        assert "step 2 of 2" in whole and "cut off at its limit" in whole
        under = [row.split("\t") for row in shown.texts(".under tr")[1:]]
        assert [[cell.strip() for cell in row] for row in under] == [
            ["mean", "✗ mean b", "Answer: 2"],
            ["only(1, mean)", "✗ only(1, mean) b log p -2.00 (-2.00)", "Answer: 2"],
        ]
        images = "[...document.images].map(image => image.complete && image.naturalWidth)"
        assert shown.page.evaluate(images) == [224] * 21


def test_answers_are_filtered_by_text_outcome_flips_and_group(runs, browser):
    file = write_report([runs], runs / "both.html")
    with opened(browser, file) as shown:
        page = shown.page
        assert shown.texts("#count") == ["30 of 30 questions"]
        page.fill("input[type=search]", "ANSWER: 17")
        page.locator("#count", has_text="1 of ").wait_for()
        assert "What is q17?" in shown.texts(".question")[0]
        page.fill("input[type=search]", "#2")
        page.locator(".id", has_text="#2 q1").wait_for()
        assert shown.texts("#count") == ["1 of 30 questions"]
        page.fill("input[type=search]", "")
        page.locator("#count", has_text="30 of ").wait_for()
        label = "select >> nth="
        page.select_option(f"{label}0", label="second")
        page.select_option(f"{label}1", label="right")
        assert shown.texts("#count") == ["9 of 30 questions"]
        page.select_option(f"{label}2", label="first cot")
        page.select_option(f"{label}3", label="unparsed")
        assert shown.texts("#count") == ["4 of 30 questions"]
        page.select_option(f"{label}4", label="2")
        assert shown.texts("#count") == ["2 of 30 questions"]  # q22, q28
        page.select_option(f"{label}4", label="all")
        page.click("[data-right='first cot'][data-wrong='first coconut']")
        assert shown.texts("#count") == ["3 of 30 questions"]  # q5, q15, q25
        assert [text.split()[1] for text in shown.texts(".question")] == ["q5", "q15", "q25"]


@pytest.mark.parametrize("width", [400, 1600])
def test_thoughts_are_shown_by_their_words_beside_the_steps_they_stand_for(runs, browser, width):
    write_thoughts(runs / "first", "coconut", 30)
    with opened(browser, write_report([runs / "first"]), width) as shown:
        titles = {*shown.texts("figcaption")}
        assert {"Effective rank, by thought", "How alike the thoughts of two questions are"} <= titles
        shown.page.click(".line >> nth=4")
        _, first, second = shown.texts(".thoughts tr")
        parts = [part.strip() for part in first.split("\t")]
        assert parts[:5] == ["1", "step<go>", "2.5", "step 0 of 4", "step 1"]
        assert parts[5] == "✗ mean b log p -2.00 (-2.00)"
        assert "no step" in second and second.strip().endswith("step 4")
        assert shown.texts(".whole .scroll p")[0].endswith("mean size of 1.25.")
        shares = shown.page.eval_on_selector_all(".word", "all => all.map(word => word.title)")
        assert shares[:2] == ["90.0 %", "10.0 %"]


def test_pages_are_turned(runs, browser):
    with opened(browser, write_report([runs / "second"])) as shown:
        shown.page.click("text=Later")
        assert len(shown.texts(".question")) == 10 and "page 2 of 2" in shown.texts("#pages")[0]
        assert shown.page.is_disabled("text=Later")


def test_whatever_texts_say_is_shown_as_text(tmp_path, browser):
    texts = list(HOSTILE.values())
    name = "<script>alert(3)<script> {{ 1 }}"  # a folder's name has no slash
    run = write_training(tmp_path / name, train_path=HOSTILE["end of script"], model_id=HOSTILE["script"])
    about = {"new_tokens": 1, "latent_passes": 0, "correct": True, "extracted": 0, "gold": 0}
    samples = [{"id": t, "question": t, "choices": [t, t[::-1]], "generated": t, **about} for t in texts]
    (run / "evaluation").mkdir()
    (run / "samples").mkdir()
    (run / "evaluation" / "cot.json").write_text(json.dumps({"mode": "cot", **summarize(samples)}))
    (run / "samples" / "final_cot.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    file = write_report([run])
    assert file.stat().st_size < 2_000_000
    with opened(browser, file, 400) as shown:
        for place in range(len(texts)):
            shown.page.click(f".line >> nth={place}")
        assert shown.texts("h1")[0].startswith(f"Run {name}")
        answers = shown.page.eval_on_selector_all("pre", "all => all.map(pre => pre.textContent)")
        for name, text in HOSTILE.items():
            expected = {"half a character": "?", "long": "w" * 20_000 + "… and 80000 more characters"}.get(name, text)
            assert expected in answers, name
        assert shown.page.evaluate("document.querySelectorAll('script').length") == 2
        assert not shown.page.locator("img").count()


def test_many_questions_and_epochs_open_quickly(tmp_path, browser):
    n = 10_000
    write_questions(tmp_path, n, with_pictures=False)
    run = write_training(tmp_path / "runs" / "big", epochs_by_stage=(100, 400), steps=20)
    for mode in ("cot", "coconut"):
        write_answers(run, mode, [place % 7 > 1 for place in range(n)], generated="because of this and that. " * 10)
    file = write_report([run])
    with opened(browser, file) as shown:
        assert shown.texts("#count") == ["10000 of 10000 questions"]
        opening = shown.busy
        assert 0.01 < opening < 3
        shown.page.select_option("select >> nth=1", label="wrong")
        assert shown.texts("#count") == ["2858 of 10000 questions"]
        shown.page.fill("input[type=search]", "what is q77")
        both = sum(place % 7 <= 1 and str(place).startswith("77") for place in range(n))
        shown.page.locator("#count", has_text=f"{both} of ").wait_for()
        assert shown.busy - opening < 3
        assert len(shown.texts(".question")) == 20
    assert file.stat().st_size < 20_000_000


@pytest.mark.parametrize("found", ["nothing", "a file"])
def test_what_is_no_run_is_named(tmp_path, capsys, found):
    if found == "a file":
        (tmp_path / "x").write_text("no run")
    assert main(["report", str(tmp_path / "x")]) == 1
    assert f"error: {tmp_path}/x is neither" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_named(runs, capsys):
    (runs / "file").write_text("")
    assert main(["report", str(runs / "second"), "--out", str(runs / "file" / "x.html")]) == 1
    assert "file/x.html cannot be written" in capsys.readouterr().err


def test_only_an_earlier_report_is_written_over(runs, capsys):
    config = runs / "second" / "config.yaml"
    before = config.read_bytes()
    for out in (config, runs):
        assert main(["report", str(runs / "second"), "--out", str(out)]) == 1
        assert f"error: {out} is there and is no report" in capsys.readouterr().err
    assert config.read_bytes() == before
    page = runs / "page.html"
    page.touch()
    for _ in range(2):  # an empty file, as mktemp makes one, and the report of the first time
        assert main(["report", str(runs / "second"), "--out", str(page)]) == 0
    assert "second" in page.read_text()


def test_a_damaged_run_is_shown_as_far_as_it_goes(runs):
    names = ("config.yaml", "evaluation/cot.json", "samples/final_coconut.jsonl", "checkpoints/epoch_0005/trainer.json")
    for name in names:
        (runs / "first" / name).write_text("{broken")
    page = write_report([runs / "first"]).read_text()
    for name in ("config.yaml", "cot.json", "coconut.json", "trainer.json"):
        assert name in page
    assert "Accuracy after each evaluated epoch" in page


def test_the_page_asks_nobody_and_runs_its_own_script_alone(runs):
    page = unescape(write_report([runs / "second"]).read_text())
    assert "default-src 'none'" in page and "script-src 'sha256-" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/", "")
