"""A model of no family of its own (here LLaVA-1.5) as transformers' own processor writes it; and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from reference import SIGHTED, llava
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from multicoco.data.example import Example
from multicoco.data.prompt import PromptBuilder
from multicoco.errors import UserError
from multicoco.models.backbone import load_backbone
from multicoco.models.families import family_of
from multicoco.models.families.generic import Generic, Pictures
from multicoco.models.freezing import freeze
from multicoco.planning.geometry import geometry_of


@pytest.mark.parametrize("kind", ["llava", "vipllava", "cohere2_vision", "got_ocr2", "fast_vlm"])
def test_models_of_the_usual_interface_are_tried(kind):
    family = family_of(AutoConfig.for_model(kind))
    assert type(family) is Generic and not family.is_proven


def test_those_that_tests_hold_against_transformers_are_not():
    for name, model in SIGHTED.items():
        assert family_of(model().config).is_proven == (name != "llava")


@pytest.mark.parametrize("sizes", [[(84, 84)], [(8, 8), (2000, 40), (300, 200)]])
def test_prompts_and_pixels_are_those_of_transformers_own_processor(sizes, tiny_of):
    backbone = load_backbone(str(tiny_of("generic")))
    tokenizer, family = AutoTokenizer.from_pretrained(tiny_of("generic")), backbone.family
    images = [Image.effect_noise((50, 60), 90).convert("RGB").resize(size) for size in sizes]
    example = Example("1", "Which tile is red?", (b"",) * len(images), (), (), "blue", None)
    read = family.read_images(images, backbone.image_processor)
    prompt = PromptBuilder(tokenizer, images=family)(example, "reasoning", read.tokens).prompt
    turn = [{"role": "user", "content": family.content("Which tile is red?", len(images))}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    expected = AutoProcessor.from_pretrained(tiny_of("generic"))(text=[text], images=images, return_tensors="pt")
    assert prompt == expected.input_ids[0].tolist()
    assert torch.equal(read.tensors["pixel_values"], expected.pixel_values)


def test_a_model_that_takes_more_of_an_image_than_pixels_is_refused():
    """As Gemma 3, which lets the tokens of an image see each other."""

    def processor(**_):
        return dict.fromkeys(("input_ids", "pixel_values", "token_type_ids", "num_crops"))

    processor.image_token = "<image>"
    Pictures(processor, frozenset({"input_ids", "pixel_values"}))
    with pytest.raises(UserError, match="takes token_type_ids beside tokens and pixels"):
        Pictures(processor, frozenset({"input_ids", "pixel_values", "token_type_ids"}))


def test_pixels_of_several_shapes_are_refused():
    family = family_of(llava().config)
    rows = [{"pixel_values": torch.zeros(1, n, 3, 8, 8)} for n in (2, 3)]
    with pytest.raises(UserError, match="pixels of several shapes"):
        family.batch([*rows, {}])
    assert family.batch([{}, {}]) == {}
    with pytest.raises(UserError, match="pixels of several shapes"):
        read = iter({**row, "input_ids": torch.zeros(1, 1)} for row in rows)
        family.read_images([Image.new("RGB", (9, 9))] * 2, lambda image: next(read))


NOTHING = dict.fromkeys(("vision_tower", "projector", "language_model"), False)


def test_what_it_does_not_say_is_refused_where_it_is_asked_for(monkeypatch):
    model = llava()
    own = Generic.image_features
    monkeypatch.setattr(Generic, "image_features", lambda *args: own(*args) + own(*args).sum().item())
    with pytest.raises(UserError, match=r"llava model cannot be planned for.*without its weights.*\(.*meta"):
        geometry_of(model.config, torch.float32, NOTHING)
    monkeypatch.setattr(Generic, "tile", None)
    with pytest.raises(UserError, match="llava model cannot be planned for"):
        geometry_of(model.config, torch.float32, NOTHING)
    del model.model.vision_tower
    with pytest.raises(UserError, match="freeze: llava has no vision_tower"):
        freeze(model, vision_tower=True)


@pytest.mark.parametrize(
    ("kind", "patches", "tokens"),
    [
        ("llava", 577, 576),  # of CLIP, whose class token is left out
        ("vipllava", 577, 576),  # features of five layers, one of which is named by its number from the front
        ("cohere2_vision", 1024, 256),
    ],
)
def test_models_of_the_usual_interface_are_planned_for_without_weights(kind, patches, tokens):
    """Of their default sizes."""
    family = family_of(AutoConfig.for_model(kind))
    assert (family.tile.patches, family.tile.tokens) == (patches, tokens)


def test_a_blank_picture_is_as_large_as_the_tower_wants_it():
    family = Generic(SimpleNamespace(vision_config=SimpleNamespace(image_size=(28, 56))))
    assert family.blank_tiles(2, torch.zeros(()))["pixel_values"].shape == (2, 3, 28, 56)
    family.config.vision_config = SimpleNamespace()  # as of timm's towers
    family.config.model_type = "fast_vlm"
    with pytest.raises(UserError, match="fast_vlm model does not say how large its pictures are"):
        family.blank_tiles(1, torch.zeros(()))
