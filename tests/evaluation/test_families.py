"""Thoughts of models of every family are counted, looked into and changed."""

from functools import partial

import pytest
from homes import make_trained_home
from PIL import Image

import multicoco
from multicoco.config import RunConfig
from multicoco.curriculum import LatentTokens
from multicoco.data.example import Example
from multicoco.data.loader import Encoder
from multicoco.data.prompt import PromptBuilder
from multicoco.evaluation.evaluator import evaluation_methods
from multicoco.evaluation.interventions import Interventions, check_interventions
from multicoco.evaluation.lens import check_lens, most_thoughts
from multicoco.models.reader import load_reader
from multicoco.models.tiny import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = ["Which tile is red? Go on."] * 5


@pytest.mark.parametrize("name", TINY)
def test_thoughts_are_counted_before_anything_runs(tmp_path, name):
    reader = load_reader(str(TINY[name](WORDS, tmp_path, hidden_size=32, text_layers=1)))
    pictures = []
    for width in (20, 300):  # of one tile, and of several
        Image.new("RGB", (width, 40)).save(tmp_path / f"{width}.png")
        pictures.append(tmp_path / f"{width}.png")
    images = tuple(pictures) if reader.family.sees_images else ()
    steps = (("Go on.",), ("Go on.", "Go."), ("Go on.",))
    questions = [Example(f"q{n}", "Which?", images[:n], (), own, "red", None) for n, own in enumerate(steps)]
    evaluated = {"coconut": True, "thoughts": True, "interventions": ["zero", "mean"]}
    coconut = {"enabled": True, "c_thought": 2, "max_latent_stage": 2}
    keys = {"name": "run", "model_id": "m", "mode": "eval_only", "val_path": "v"}
    config = RunConfig(**keys, coconut=coconut, eval_config=evaluated)
    methods = evaluation_methods(config, LatentTokens(9001, 9002, 9003))
    encoder = Encoder(
        PromptBuilder(reader.tokenizer, images=reader.family),
        partial(reader.family.read_images, image_processor=reader.image_processor),
    )
    check_interventions(config, methods, 2, questions, encoder)
    check_lens(config, methods, 2, questions, encoder)
    method = methods["coconut"]
    rows = [method.prompt_row(encoder.tokens(question, "reasoning"), 2) for question in questions]  # images and all
    assert Interventions(config, method, 2, questions, encoder).counts == [row.count(9002) for row in rows] == [2, 4, 2]
    arranged = lambda example, tokens: (method.prompt_row(tokens, 2), [])  # noqa: E731
    assert most_thoughts(encoder, method, arranged, questions) == 4


def test_a_model_whose_images_are_rows_and_columns_is_asked(tmp_path):
    asker = multicoco.load(make_trained_home(tmp_path, "idefics3") / "runs" / "run")
    asker.limit_answers(2)
    image = Image.new("RGB", (84, 84))
    answer = asker.ask(image, "Which tile is red?", ["red", "blue"], lens=True, intervene=["zero"])
    assert len(answer.words) == len(answer.norms) == 4
    assert answer.under["zero"].chances != answer.chances
