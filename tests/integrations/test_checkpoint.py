import pytest
import torch

import multicoco
from multicoco.data.sources import load_examples
from multicoco.errors import UserError
from multicoco.integrations import checkpoint
from multicoco.integrations.checkpoint import Checkpoint, Image, lettered_choices

LETTER = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        (f"Which is it?\nA. a cat\nB. a dog\nC. 3. Street\n{LETTER}", ["a cat", "a dog", "3. Street"]),  # ScienceQA
        (
            "Note: only A, B.\nHow many?\nSelect from the following choices.\n(A) 0\n(B) 3\n(C) 2",
            ["0", "3", "2"],
        ),  # BLINK
        ("Question: Which?\nOptions:\nA. red\nB. blue\nPlease select the correct answer.", ["red", "blue"]),
        ("A: yes\nB: no", ["yes", "no"]),
        ("A. Lincoln was born where?", []),
        ("A. x\nC. y", []),
        ("In the first row\nA. 1\nB. 2\nand in the second\nA. 3\nB. 4\nC. 5", ["3", "4", "5"]),
        ("Options: A: red, B: blue", []),  # MMStar's are in one line
        ("What is it?", []),
    ],
)
def test_choices_are_the_last_lines_that_go_a_b_c(prompt, choices):
    assert lettered_choices(prompt) == choices


@pytest.mark.parametrize(
    ("writes", "prompt", "text"),
    [
        ("B", "Which?\nA. red\nB. blue", "B"),
        ("(B) blue", "Which?\nA. red\nB. blue", "B"),
        ("blue", "Which?\nA. red\nB. blue", "B"),  # a checkpoint whose answers are texts
        ("It is blue.", "Which?\n(A) red\n(B) blue", "B"),
        ("red or blue", "Which?\nA. red\nB. blue", "red or blue"),  # for the runner to judge
        ("Blue tiles", "Which?", "Blue tiles"),
        ("D", "Which? Options: A: red, D: blue", "D"),
        (None, "Which?\nA. red\nB. blue", "Who knows"),
    ],
)
def test_the_runner_is_given_the_answer_and_not_the_reasoning(fake, writes, prompt, text):
    fake.writes = writes
    reply = Checkpoint("runs/run", "cot").reply([prompt])
    assert reply.text == text and reply.written.endswith(writes or text) and (reply.tokens, reply.thoughts) == (7, 4)


def test_images_keep_their_places_among_the_texts(fake):
    one, two = object(), object()
    Checkpoint("runs/run", "coconut", latents=2).reply(
        ["See ", Image(one), " and ", Image(two), ". A <image> of what?"]
    )
    assert fake.asked == [([one, two], "See <image> and <image>. A [image] of what?", "coconut", 2)]
    Checkpoint("runs/run").reply(["No picture"])
    assert fake.asked[-1] == (None, "No picture", None, None)


def test_what_cannot_be_is_said(fake, monkeypatch):
    with pytest.raises(UserError, match="mode icot: runs/run is asked in vanilla, cot, coconut"):
        Checkpoint("runs/run", "icot")
    with pytest.raises(UserError, match="nowhere"):
        Checkpoint("nowhere")
    with pytest.raises(UserError, match="latents 2: mode cot has no thoughts"):
        Checkpoint("runs/run", "cot", latents=2)
    monkeypatch.setattr(checkpoint, "world_size", lambda: 4)
    with pytest.raises(UserError, match="the runner has started 4 processes"):
        Checkpoint("runs/run")


def test_a_checkpoint_answers_in_all_modes_as_when_it_is_asked_itself(trained_home, one_thread):
    example = load_examples(trained_home / "scenes" / "aokvqa_v1p0_val.json", trained_home / "scenes")[0]
    asker = multicoco.load(trained_home / "runs" / "run", "cpu")
    for mode, thoughts in (("vanilla", 0), ("cot", 0), ("coconut", 4)):
        reply = Checkpoint(trained_home / "runs" / "run", mode).reply([Image(example.image), example.question])
        answer = asker.ask(example.image, example.question, mode=mode)
        assert (reply.written, reply.tokens, reply.thoughts) == (answer.text, answer.tokens, thoughts)
    short = Checkpoint(trained_home / "runs" / "run", "cot", max_new_tokens=3)
    assert short.reply([Image(example.image), example.question]).tokens <= 3


def test_images_among_the_texts_of_a_question_that_is_asked_stand_there(trained_home, one_thread, monkeypatch):
    example = load_examples(trained_home / "scenes" / "aokvqa_v1p0_val.json", trained_home / "scenes")[0]
    asker = multicoco.load(trained_home / "runs" / "run")
    prompts = []
    inner = asker.assembly.encoder.prompt

    def keep(*arguments):
        prompts.append(inner(*arguments).prompt)
        return inner(*arguments)

    monkeypatch.setattr(asker.assembly.encoder, "prompt", keep)
    for question in ("before <image> between <image> after", "before between after"):
        asker.ask([example.image, example.image], question, mode="cot")
    among, in_front = (torch.tensor(ids) for ids in prompts)
    image_token = asker.assembly.backbone.model.config.image_token_id
    assert (among == image_token).sum() == (in_front == image_token).sum() == 18
    assert (among != image_token).nonzero()[0] == (in_front != image_token).nonzero()[0]
    gaps = [(ids == image_token).nonzero().flatten().diff().max() for ids in (among, in_front)]
    assert gaps[0] > gaps[1]  # words stand between
    with pytest.raises(UserError, match="the text has 1 marks"):
        asker.ask([example.image, example.image], "one <image>")
