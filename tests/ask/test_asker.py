"""A checkpoint that is asked alone answers as its model does."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

import multicoco
from multicoco.errors import UserError
from multicoco.evaluation import asking


def test_written_answers_are_those_of_the_models_own_generate(asker, example):
    answer = asker.ask(example.image, example.question, example.choices, mode="cot")
    tokens, inputs = asker.assembly.encoder(example, "reasoning")
    model = asker.assembly.backbone.model
    ids = torch.tensor([tokens.prompt])
    ends = asker.assembly.backbone.end_token_ids
    written = model.generate(ids, **inputs, max_new_tokens=12, do_sample=False, eos_token_id=ends)[0, ids.shape[1] :]
    assert answer.text == asker.assembly.backbone.tokenizer.decode(written, skip_special_tokens=True)
    assert (answer.tokens, answer.thoughts, answer.mode) == (len(written), 0, "cot")


def test_thoughts_are_as_many_as_at_the_stage_or_as_asked_for(asker, example):
    assert asker.modes == ["vanilla", "cot", "coconut"]
    answer = asker.ask(example.image, example.question, example.choices)
    assert (answer.mode, answer.thoughts) == ("coconut", 4)
    assert asker.ask(example.image, example.question, latents=1).thoughts == 1
    assert sum(answer.chances.values()) == pytest.approx(1) and set(answer.chances) == set(example.choices)
    assert asker.ask(example.image, example.question).chances == {}


def test_a_picture_may_be_a_file_its_content_or_opened(asker, example):
    image = Image.open(example.image)
    forms = [example.image, str(example.image), example.image.read_bytes(), image, [image]]
    answers = [asker.ask(form, example.question, example.choices) for form in forms]
    assert len({(answer.text, *answer.chances.values()) for answer in answers}) == 1


def test_thoughts_are_read_and_intervened_on(asker, example, trained_home, monkeypatch):
    other = next(p for p in example.image.parent.iterdir() if p != example.image)
    specs = ["zero", "mean", "transplant", "other_input(blank)", "other_input(reverse)", "cut(1)", "only(2, mean)"]
    own, others = f"transplant={example.image}", f"transplant={other}"
    answer = asker.ask(example.image, example.question, example.choices, intervene=[*specs, own, others], lens=True)
    assert set(answer.under) == {*specs, own, others}
    assert len(answer.words) == 4 and all(len(words) == 5 and 0 < words[0][1] <= 1 for words in answer.words)
    # its own thoughts change nothing, all others change what it finds likely
    assert answer.under[own].chances == pytest.approx(answer.chances, abs=1e-6)
    changed = [spec for spec, under in answer.under.items() if under.chances != pytest.approx(answer.chances, abs=1e-6)]
    assert set(changed) == {*specs, others}
    assert answer.under["cut(1)"].thoughts == 1 and answer.under["zero"].thoughts == 4
    assert len(answer.norms) == 4 and min(answer.norms) > 0


def test_single_thoughts_are_changed_together(asker, example):
    other = next(p for p in example.image.parent.iterdir() if p != example.image)
    whole = [f"transplant={other}"]
    single = [f"only({k}, transplant={other})" for k in range(1, 5)]
    kept = [f"only({k}, transplant={example.image})" for k in range(1, 5)]
    two = ["only(1, zero)", "only(3, zero)"]
    answer = asker.ask(example.image, example.question, example.choices, intervene=[whole, single, kept, two, two[1:]])
    names = [" + ".join(specs) for specs in (whole, single, kept, two, two[1:])]
    assert [*answer.under] == names
    whole, single, kept, two, last = (answer.under[name].chances for name in names)
    assert whole == pytest.approx(single, abs=1e-6) and kept == pytest.approx(answer.chances, abs=1e-6)
    for these, those in ((whole, answer.chances), (two, last), (two, answer.chances)):
        assert these != pytest.approx(those, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mode": "icot"}, "trained by coconut and is asked in vanilla, cot, coconut"),
        ({"mode": "cot", "latents": 3}, "mode cot has no thoughts"),
        ({"latents": -1}, "latents -1: there cannot be fewer than 0"),
        ({"mode": "vanilla", "intervene": ["zero"]}, "no thoughts of its own"),
        ({"intervene": ["zeros"]}, "there is no intervention 'zeros'"),
        ({"intervene": ["only(9, zero)"]}, "needs 9 thoughts"),
        ({"intervene": [["only(1, zero)", "mask"]]}, "only single thoughts are changed together"),
        ({"image": "nowhere.png"}, "nowhere.png"),
    ],
)
def test_what_cannot_be_asked_is_said(asker, example, options, expected):
    with pytest.raises(UserError, match=expected):
        asker.ask(**({"image": example.image, "question": "What?", "choices": ["a", "b"]} | options))


def test_answers_are_greedy_or_sampled_as_the_config_says(asker, example, monkeypatch):
    used = []
    inner = asking.generate_after

    def generate_after(*arguments, generation_config, **further):
        used.append(generation_config)
        return inner(*arguments, generation_config=generation_config, **further)

    monkeypatch.setattr(asking, "generate_after", generate_after)

    def answers(**settings) -> list[str]:
        generation = asker.config.generation.model_copy(update=settings)
        monkeypatch.setattr(asker, "config", asker.config.model_copy(update={"generation": generation, "seed": 5}))
        return [asker.ask(example.image, example.question, mode="cot").text for _ in range(2)]

    greedy, again = answers()
    hot, as_hot = answers(do_sample=True, temperature=2.0, top_p=0.9)
    assert greedy == again and hot == as_hot != greedy  # of one seed
    assert [config.do_sample for config in used] == [True, True]  # greedy ones are not generated by transformers
    assert (used[-1].temperature, used[-1].top_p, used[-1].num_beams) == (2.0, 0.9, 1)


def test_a_control_whose_thoughts_are_of_another_question_is_not_asked_alone(asker, example, monkeypatch):
    borrowed = asker.config.coconut.model_copy(update={"thoughts": "borrowed"})
    monkeypatch.setattr(asker, "config", asker.config.model_copy(update={"coconut": borrowed}))
    with pytest.raises(UserError, match="here is one alone"):
        asker.ask(example.image, "What?")
    assert asker.ask(example.image, "What?", mode="cot").mode == "cot"


def test_a_control_without_thoughts_is_asked_for_none(asker, example, monkeypatch):
    nothing = asker.config.coconut.model_copy(update={"c_thought": 0})
    monkeypatch.setattr(asker, "config", asker.config.model_copy(update={"coconut": nothing}))
    assert asker.ask(example.image, "What?").thoughts == 0
    for options in ({"latents": 2}, {"lens": True}):
        with pytest.raises(UserError, match="mode coconut has no thoughts: leave latents and lens out"):
            asker.ask(example.image, "What?", **options)


def test_without_the_runs_data_its_mean_is_not_to_be_had(asker, example, monkeypatch):
    monkeypatch.setattr(asker, "config", asker.config.model_copy(update={"data_dir": "gone"}))
    with pytest.raises(UserError, match=r"gone/aokvqa_v1p0_val.json.*or take zero"):
        asker.ask(example.image, "What?", intervene=["mean"])


def test_a_model_without_a_run_is_asked_without_thoughts(trained_home, example, one_thread):
    asker = multicoco.load(trained_home / "model")
    assert asker.modes == ["vanilla", "cot"]
    assert asker.ask(example.image, example.question, example.choices).mode == "cot"
    with pytest.raises(UserError, match="nowhere"):
        multicoco.load(trained_home / "nowhere")


@pytest.mark.distributed
def test_the_command_answers_standard_input_without_deepspeed(trained_home, example):
    code = "import sys; sys.modules['deepspeed'] = None; from multicoco.cli import main; sys.exit(main())"
    checkpoint = trained_home / "runs" / "run" / "checkpoints" / "epoch_0003" / "model"
    options = ["--image", str(example.image), "--json", "--mode", "all", "--intervene", "only(2, mean),zero"]
    command = [sys.executable, "-c", code, "ask", str(checkpoint), *options]
    lines = f"{example.question}\n\n{json.dumps({'question': 'Which?', 'choices': list(example.choices)})}\n"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("epoch_0003 (stage 2, epoch 3)\n")
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["mode"] for answer in first["answers"]] == ["vanilla", "cot", "coconut"]
    assert second["choices"] == [*example.choices] and second["image"] == str(example.image)
    assert [*second["answers"][2]["under"]] == ["only(2, mean)", "zero"]
    assert set(second["answers"][2]["chances"]) == {*example.choices}
