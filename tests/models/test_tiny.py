import copy

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from multicoco import registry
from multicoco.data.example import Example
from multicoco.data.prompt import PromptBuilder
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import load_backbone
from multicoco.models.families import family_of
from multicoco.models.tiny import TINY, build_tiny_text
from multicoco.models.vocabulary import add_latent_tokens


def test_there_is_one_of_every_family():
    assert TINY.keys() == {*registry.names("families"), "gemma2", "text_without_chats"}
    for name, family in registry.load_all("families").items():
        assert TINY[name].sees_images == family.sees_images


@pytest.mark.parametrize("name", TINY)
def test_tiny_model_is_the_same_for_a_seed(tiny_of, tmp_path, name):
    first = tiny_of(name)
    again = TINY[name](["Which tile is red?"] * 5, tmp_path / "again", hidden_size=32, text_layers=1)
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_text() == (first / "tokenizer.json").read_text()


@pytest.mark.parametrize("name", [name for name in TINY if TINY[name].sees_images])
def test_transformers_own_classes_load_it_and_an_image_of_the_scenes_is_nine_tokens(tiny_of, name):
    backbone = load_backbone(str(tiny_of(name)))
    family, tokenizer = family_of(backbone.model.config), AutoTokenizer.from_pretrained(tiny_of(name))
    assert type(family) is registry.load("families", name)
    read = family.read_images([Image.new("RGB", (84, 84))], backbone.image_processor)
    turn = [{"role": "user", "content": family.content("Which tile is red?", 1)}]
    ids = tokenizer.encode(tokenizer.apply_chat_template(turn, tokenize=False), add_special_tokens=False)
    assert ids.count(family.config.image_token_id) == 1
    shown_twice = 9 + 3 * (3 + 1)  # by LLaVA-OneVision: as a whole, and in rows that end with a token of their own
    expected = shown_twice if name == "llava_onevision" else 9
    assert family.place_images(ids, read.tokens, tokenizer).count(family.config.image_token_id) == expected


@pytest.mark.parametrize("name", [name for name in TINY if not TINY[name].sees_images])
def test_a_text_models_checkpoint_is_loaded_by_plain_transformers_and_computes_the_same(tiny_of, tmp_path, name):
    backbone = load_backbone(str(tiny_of(name)))
    add_latent_tokens(backbone)
    backbone.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path).encode("Which tile is red? " * 20, return_tensors="pt")
    passes = LatentReasoner(backbone.model, None)(ids, torch.ones_like(ids), n_passes=3, return_logits=True)
    torch.testing.assert_close(passes.logits, model(ids).logits, rtol=1e-4, atol=1e-5)


def test_the_caps_of_the_tiny_gemma_2_are_reached(tiny_of):
    model = load_backbone(str(tiny_of("gemma2"))).model
    ids = torch.arange(90)[None]  # more than its window
    own = model(ids).logits
    changed = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 100}
    for key, value in changed.items():
        config = copy.deepcopy(model.config)
        setattr(config, key, value)
        other = type(model)(config)
        other.load_state_dict(model.state_dict())
        assert (other(ids).logits - own).abs().max() > 1e-2, key


def test_without_chats_a_question_is_a_line_and_the_answers_prefix_two_tokens(tmp_path):
    texts = ["Which tile?", "tile is\n"] * 50
    model = TINY["text_without_chats"](texts, tmp_path / "model", hidden_size=32, text_layers=1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = PromptBuilder(tokenizer)(Example("1", "Which tile?", (), (), ("tile is",), "is", None))
    parts = [encoded.prompt, *encoded.steps, encoded.answer]
    assert [tokenizer.decode(part) for part in parts] == ["Which tile?\n", "tile is\n", "Answer: is<|im_end|>"]
    assert len(encoded.answer) == 4


def test_tiny_text_model_is_one_for_text_alone(tmp_path):
    folders = [
        build_tiny_text(["Tom is a wumpus."] * 5, tmp_path / name, hidden_size=32, text_layers=1) for name in "ab"
    ]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    backbone = load_backbone(str(folders[0]))
    assert backbone.model.config.model_type == "qwen2"
    assert "<IMG_CONTEXT>" not in backbone.tokenizer.get_vocab()
    assert backbone.tokenizer.decode(backbone.tokenizer.encode("Tom is a wumpus.")) == "Tom is a wumpus."
