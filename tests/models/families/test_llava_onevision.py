"""LLaVA-OneVision's prompts, tiles and features against transformers' own processor, and its checkpoints."""

import json

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaOnevisionProcessor,
    ProcessorMixin,
)

from multicoco.data.example import Example
from multicoco.data.prompt import PromptBuilder
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import load_backbone
from multicoco.models.families import family_of
from multicoco.models.vocabulary import add_latent_tokens

SIDE = 384
CANVASES = [[SIDE * rows, SIDE * columns] for rows in range(1, 7) for columns in range(1, 7)]
# what llava-hf/llava-onevision-qwen2-0.5b-ov-hf has in its preprocessor_config.json and in its config.json
PROCESSOR = {
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "image_grid_pinpoints": CANVASES,
    "do_pad": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
}
VISION = {"model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": 14, "vision_use_head": False}
SIZES = [(8, 8), (640, 480), (500, 10), (3, 150), (2400, 1600)]
ALL = len(CANVASES)


@pytest.fixture
def real(tmp_path):
    """The family of the real geometry, in a narrow model, and its image processor."""

    def load(tiles):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = {"model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": 400, **small}
        canvases = {"image_grid_pinpoints": CANVASES, "vision_aspect_ratio": "anyres_max_9"}
        vision = {**VISION, **small}
        config = AutoConfig.for_model("llava_onevision", vision_config=vision, text_config=text, **canvases)
        family = family_of(config)
        return family, family.load_image_processor(str(tmp_path), tiles)

    return load


def noise(size):
    pixels = torch.randint(256, (50, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize(size)


def own_processor(image_processor, tokenizer, monkeypatch):
    """transformers' own, without its part for videos, which needs torchvision."""
    check = ProcessorMixin.check_argument_for_proper_class
    monkeypatch.setattr(
        ProcessorMixin,
        "check_argument_for_proper_class",
        lambda self, kind, part: None if kind == "video_processor" else check(self, kind, part),
    )
    settings = {"num_image_tokens": (SIDE // 14) ** 2, "vision_feature_select_strategy": "full"}
    return LlavaOnevisionProcessor(image_processor, tokenizer, None, **settings)


@pytest.mark.parametrize("tiles", [4, ALL])
@pytest.mark.parametrize("sizes", [*([size] for size in SIZES), SIZES[:3]], ids=lambda sizes: str(sizes[0]))
def test_prompts_and_tiles_are_those_of_transformers_own_processor(sizes, tiles, tiny_of, real, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(tiny_of("llava_onevision"))
    family, image_processor = real(tiles)
    family.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    images = [noise(size) for size in sizes]
    example = Example("1", "Which tile is red?", (b"",) * len(images), (), (), "blue", None)
    read = family.read_images(images, image_processor)
    prompt = PromptBuilder(tokenizer, images=family)(example, "reasoning", read.tokens).prompt
    turn = [{"role": "user", "content": family.content("Which tile is red?", len(images))}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    own = own_processor(image_processor, tokenizer, monkeypatch)
    expected = own(text=[text], images=[images], return_tensors="pt")
    assert prompt == expected.input_ids[0].tolist()
    assert torch.equal(read.tensors["pixel_values"], expected.pixel_values.flatten(0, 1))
    assert torch.equal(read.tensors["image_sizes"], expected.image_sizes)
    assert torch.equal(read.tensors["batch_num_images"], expected.batch_num_images)
    assert len(read.tensors["pixel_values"]) <= (family.most_tiles(tiles) if len(images) == 1 else len(images))
    n_tiles = len(read.tensors["pixel_values"]) // len(images)
    assert max(read.tokens) <= family.written(n_tiles)


@pytest.mark.parametrize("tiles", [1, ALL])
def test_the_model_makes_as_many_features_as_there_are_tokens(real, tiles):
    """Shapes alone, of the real geometry; several images of one example and one of another in a batch."""
    family, image_processor = real(tiles)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(family.config)
    rows = [family.read_images([noise(size) for size in sizes], image_processor) for sizes in (SIZES[3:], SIZES[4:])]
    batch = family.batch([rows[0].tensors, {}, rows[1].tensors])
    features = family.image_features(model, batch | {"pixel_values": batch["pixel_values"].to("meta")})
    assert features.shape == (sum(rows[0].tokens) + sum(rows[1].tokens), 16)
    assert len(rows[0].tokens) == 2 and len(batch["image_sizes"]) == 3


def test_a_bound_on_tiles_is_the_models_too_and_goes_with_its_checkpoints(tiny_of, tmp_path):
    folder = tiny_of("llava_onevision")
    for name, path in (("config", tmp_path / "wide"), ("preprocessor_config", tmp_path / "wide")):
        path.mkdir(exist_ok=True)
        for file in folder.iterdir():
            if not (path / file.name).exists():
                (path / file.name).write_bytes(file.read_bytes())
        content = json.loads((path / f"{name}.json").read_text())
        content["image_grid_pinpoints"] = [[84, 84], [168, 168], [84, 168]]
        (path / f"{name}.json").write_text(json.dumps(content))
    backbone = load_backbone(str(tmp_path / "wide"), max_image_tiles=2)
    backbone.save_pretrained(tmp_path / "saved")
    expected = [[84, 84], [84, 168]]
    assert backbone.model.config.image_grid_pinpoints == expected
    assert AutoConfig.from_pretrained(tmp_path / "saved").image_grid_pinpoints == expected
    images = AutoImageProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    assert images.image_grid_pinpoints == expected
    read = backbone.family.read_images([Image.new("RGB", (500, 500), "red")], images)
    assert backbone.family.image_features(backbone.model, read.tensors).shape == (read.tokens[0], 32)


@pytest.mark.parametrize("name", ["llava_onevision", "generic"])
def test_a_checkpoint_is_loaded_by_plain_transformers_and_computes_the_same(name, tiny_of, tmp_path):
    backbone = load_backbone(str(tiny_of(name)))
    add_latent_tokens(backbone)
    backbone.save_pretrained(tmp_path)
    model, family = AutoModelForImageTextToText.from_pretrained(tmp_path), backbone.family
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    images = family.load_image_processor(str(tmp_path), 12)
    read = family.read_images([Image.new("RGB", (84, 100), "red")], images)
    example = Example("1", "Which tile is red?", (b"",), (), (), "blue", None)
    ids = torch.tensor([PromptBuilder(tokenizer, images=family)(example, "reasoning", read.tokens).prompt])
    own = model(ids, **family.own_inputs(ids, read.tensors)).logits
    reasoner = LatentReasoner(backbone.model, None)
    passes = reasoner(ids, torch.ones_like(ids), n_passes=3, return_logits=True, **read.tensors)
    torch.testing.assert_close(passes.logits, own, rtol=1e-4, atol=1e-5)
