"""Qwen's image sizes, prompts and positions against transformers' own processor and models."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reference import IMAGE, LATENT, PAD, SIGHTED
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)

from multicoco.data.example import Example
from multicoco.data.prompt import PromptBuilder
from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.self_check import self_check
from multicoco.models.backbone import load_backbone
from multicoco.models.families import family_of
from multicoco.models.families.qwen3_vl import Qwen3VL
from multicoco.models.vocabulary import add_latent_tokens

# what Qwen/Qwen2-VL-7B-Instruct, Qwen/Qwen2.5-VL-7B-Instruct and Qwen/Qwen3-VL-8B-Instruct have in their
# preprocessor_config.json
_OLDER = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
PROCESSORS = {
    "qwen2_vl": _OLDER,
    "qwen2_5_vl": _OLDER,
    "qwen3_vl": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}
OWN = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}
SIZES = [(8, 8), (640, 480), (1000, 20), (3, 150), (5000, 4000)]
TILES = 3


@pytest.fixture
def real_processor(tmp_path):
    """The family of a real config, and its image processor of as many tiles as are asked for."""

    def load(name, tiles):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
        family = family_of(AutoConfig.for_model(name, vision_config={"patch_size": PROCESSORS[name]["patch_size"]}))
        return family, family.load_image_processor(str(tmp_path), tiles)

    return load


@pytest.fixture
def own_processor(monkeypatch):
    """transformers' own processor without its part for videos, which needs torchvision."""
    check = ProcessorMixin.check_argument_for_proper_class
    monkeypatch.setattr(
        ProcessorMixin,
        "check_argument_for_proper_class",
        lambda self, name, part: None if name == "video_processor" else check(self, name, part),
    )
    return lambda name, images, tokenizer: OWN[name](image_processor=images, tokenizer=tokenizer)


@pytest.mark.parametrize("name", PROCESSORS)
def test_prompts_and_pixels_are_those_of_transformers_own_processor(name, tiny_of, real_processor, own_processor):
    tokenizer = AutoTokenizer.from_pretrained(tiny_of(name))
    family, image_processor = real_processor(name, TILES)
    family.config.image_token_id = tokenizer.image_token_id
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (50, 60, 3), generator=rng, dtype=torch.uint8)
    images = [Image.fromarray(noise.numpy()).resize(size) for size in SIZES]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": family.content("Which tile is red?", len(images))}],
        tokenize=False,
        add_generation_prompt=True,
    )
    own = own_processor(name, image_processor, tokenizer)(text=[text], images=images, return_tensors="pt")
    read = family.read_images(images, image_processor)
    example = Example("1", "Which tile is red?", (b"",) * len(images), (), (), "blue", None)
    prompt = PromptBuilder(tokenizer, images=family)(example, "reasoning", read.tokens).prompt
    assert prompt == own.input_ids[0].tolist()
    ids = torch.tensor([prompt])
    given = family.own_inputs(ids, read.tensors)
    assert given.keys() | {"input_ids", "attention_mask"} == own.keys()
    for key, tensor in given.items():
        assert torch.equal(tensor, own[key]), key
    assert family.own_inputs(ids, {}) == {}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", SIZES)
def test_an_image_has_the_tokens_of_the_real_processor_up_to_its_area_in_tiles(name, size, real_processor):
    family, limited = real_processor(name, TILES)
    _, real = real_processor(name, 10**6)
    assert real.size["longest_edge"] == PROCESSORS[name].get("max_pixels", 16777216)
    patches = real.get_number_of_image_patches(size[1], size[0])
    [tokens] = family.read_images([Image.new("RGB", size)], limited).tokens
    if patches * PROCESSORS[name]["patch_size"] ** 2 <= TILES * 448**2:
        assert tokens == patches // 4
    else:
        assert 0.9 * TILES * family.tile.tokens < tokens <= TILES * family.tile.tokens < patches // 4


def test_an_image_that_is_too_thin_is_refused_by_its_size(real_processor):
    family, processor = real_processor("qwen3_vl", 1)
    with pytest.raises(UserError, match="an image of 402 x 2 pixels is too thin"):
        family.read_images([Image.new("RGB", (402, 2))], processor)


MODELS = {name: SIGHTED[name]().double() for name in PROCESSORS}


@settings(max_examples=30, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(PROCESSORS)))
def test_positions_are_the_models_own_whatever_padding_and_images_a_row_has(data, name):
    sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))  # of an image, in tokens
    pieces = st.lists(st.tuples(st.integers(1, 4), sizes | st.none()), min_size=1, max_size=4)
    rows, grids = [], []
    for row in data.draw(st.lists(pieces, min_size=1, max_size=3)):
        ids = []
        for n_words, size in row:
            ids += [5] * n_words
            if size:
                ids += [IMAGE] * (size[0] * size[1])
                grids.append((1, 2 * size[0], 2 * size[1]))
        rows.append(([0] * data.draw(st.integers(0, 3)), ids))
    length = max(len(left) + len(ids) for left, ids in rows) + 1
    padded = [left + ids + [PAD] * (length - len(left) - len(ids)) for left, ids in rows]
    mask = [[0] * len(left) + [1] * len(ids) + [0] * (length - len(left) - len(ids)) for left, ids in rows]
    input_ids, attention_mask = torch.tensor(padded), torch.tensor(mask)
    model, inputs = MODELS[name], {"image_grid_thw": torch.tensor(grids)} if grids else {}
    own, _ = model.model.get_rope_index(input_ids, (input_ids == IMAGE).int(), attention_mask=attention_mask, **inputs)
    positions = family_of(model.config).position_ids(input_ids, attention_mask, inputs)
    assert positions.shape == own.shape
    assert torch.equal(positions * attention_mask, own * attention_mask)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_checkpoint_is_loaded_by_plain_transformers_and_computes_the_same(name, tiny_of, tmp_path):
    backbone = load_backbone(str(tiny_of(name)))
    add_latent_tokens(backbone)
    backbone.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    images = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    read = backbone.family.read_images([Image.new("RGB", (84, 100), "red")], images)
    assert torch.equal(
        read.tensors["pixel_values"],
        backbone.image_processor([Image.new("RGB", (84, 100), "red")], return_tensors="pt").pixel_values,
    )
    prompt = PromptBuilder(tokenizer, images=backbone.family)(
        Example("1", "Which tile is red?", (b"",), (), (), "blue", None), "reasoning", read.tokens
    ).prompt
    ids = torch.tensor([prompt])
    own = model(ids, **backbone.family.own_inputs(ids, read.tensors)).logits
    reasoner = LatentReasoner(backbone.model, None)
    passes = reasoner(ids, torch.ones_like(ids), n_passes=3, return_logits=True, **read.tensors).logits
    torch.testing.assert_close(passes, own, rtol=1e-4, atol=1e-5)


def image_at_the_end():
    grids = torch.tensor([[1, 2, 4]])
    pixels = torch.randn(8, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 6, 7, IMAGE, IMAGE]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "image_grid_thw": grids,
    }


def test_features_that_do_not_enter_later_layers_are_missed_by_the_self_check(monkeypatch):
    reasoner = LatentReasoner(SIGHTED["qwen3_vl"](), LATENT)
    self_check(reasoner, [image_at_the_end()])
    monkeypatch.setattr(Qwen3VL, "further", lambda self, at_image, later: lambda columns: {})
    with pytest.raises(UserError, match="do not compute what the qwen3_vl model computes"):
        self_check(reasoner, [image_at_the_end()])


def test_a_prompt_that_ends_with_an_image_is_refused_where_its_last_column_cannot_be_run_again():
    batch, options = image_at_the_end(), {"max_new_tokens": 2, "pad_token_id": PAD}
    with pytest.raises(ValueError, match="a prompt cannot end with an image"):
        LatentReasoner(SIGHTED["qwen3_vl"](), LATENT).generate(**batch, **options)
    LatentReasoner(SIGHTED["qwen2_5_vl"](), LATENT).generate(**batch, **options)
