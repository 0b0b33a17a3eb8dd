import json

import pytest
import torch
from PIL import Image
from reference import IMAGE, IMAGE_TOKENS, internvl
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, InternVLProcessor, PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.processing_utils import ProcessorMixin

from multicoco.data.example import Example
from multicoco.data.prompt import PromptBuilder
from multicoco.errors import UserError
from multicoco.models.backbone import load_backbone
from multicoco.models.families import family_of
from multicoco.models.reader import load_reader
from multicoco.planning.geometry import read_model_config

SIZES = [(8, 8), (100, 90), (500, 10), (3, 150), (3000, 2000)]  # tiny, 1:50, huge


@pytest.fixture(scope="module")
def real_source(tmp_path_factory):
    path = tmp_path_factory.mktemp("processor")
    # what OpenGVLab/InternVL3-1B-hf has in its preprocessor_config.json
    (path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": false, "do_resize": true, '
        '"size": {"height": 448, "width": 448}, "min_patches": 1, "max_patches": 12, "do_convert_rgb": true, '
        '"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}'
    )
    return path


@pytest.fixture(scope="module")
def real_processor(real_source):
    return AutoImageProcessor.from_pretrained(real_source, backend="pil", crop_to_patches=True, max_patches=12)


@pytest.mark.parametrize("size", [(448, 448), (640, 480), (1920, 300), (200, 1500), (1344, 1344), (100, 90)])
def test_real_geometry_cuts_into_the_canvas_and_a_thumbnail(real_processor, size):
    """448-pixel tiles, 1 to 12 of them, on the canvas that transformers chooses."""
    width, height = size
    columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
    tiles = real_processor(Image.new("RGB", size), return_tensors="pt").pixel_values
    expected = columns * rows + (columns * rows > 1)
    assert tiles.shape == (expected, 3, 448, 448)
    assert real_processor.get_number_of_image_patches(height, width) == expected


@pytest.mark.parametrize("tiles", [1, 3])
def test_prompts_and_pixels_are_those_of_transformers_own_processor(tiny, real_source, monkeypatch, tiles):
    """Without its part for videos, which needs torchvision."""
    check = ProcessorMixin.check_argument_for_proper_class
    monkeypatch.setattr(
        ProcessorMixin,
        "check_argument_for_proper_class",
        lambda self, kind, part: None if kind == "video_processor" else check(self, kind, part),
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    family = family_of(AutoConfig.for_model("internvl", image_token_id=tokenizer.context_image_token_id))
    image_processor = family.load_image_processor(str(real_source), tiles)
    noise = torch.randint(256, (50, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = [Image.fromarray(noise.numpy()).resize(size) for size in SIZES]
    example = Example("1", "Which tile is red?", (b"",) * len(images), (), (), "blue", None)
    read = family.read_images(images, image_processor)
    prompt = PromptBuilder(tokenizer, images=family)(example, "reasoning", read.tokens).prompt
    turn = [{"role": "user", "content": family.content("Which tile is red?", len(images))}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    own = InternVLProcessor(image_processor, tokenizer, None, family.config.image_seq_length)
    expected = own(text=[text], images=images, return_tensors="pt")
    assert prompt == expected.input_ids[0].tolist()
    assert torch.equal(read.tensors["pixel_values"], expected.pixel_values)
    assert max(read.tokens) == family.written(family.most_tiles(tiles))


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_the_original_checkpoints_are_refused_by_the_name_of_those_that_are_read(tmp_path, trust_remote_code):
    own_code = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat", "auto_map": own_code}))
    for load in (load_backbone, load_reader):
        with pytest.raises(UserError, match=f"{tmp_path}.* is a internvl_chat model.*InternVL3-1B-hf"):
            load(str(tmp_path), trust_remote_code=trust_remote_code)
    with pytest.raises(UserError, match=f"{tmp_path}.* is a internvl_chat model.*InternVL3-1B-hf"):
        read_model_config(str(tmp_path), trust_remote_code)


def test_images_become_tokens_and_tiles(tiny):
    family, processor = family_of(internvl().config), AutoImageProcessor.from_pretrained(tiny, backend="pil")
    read = family.read_images([Image.new("RGB", (84, 84)), Image.new("RGB", (84, 84))], processor)
    assert list(read.tokens) == [IMAGE_TOKENS, IMAGE_TOKENS]
    assert read.tensors["pixel_values"].shape == (2, 3, 84, 84)
    assert family.read_images([], processor).tensors == {}


def test_every_image_is_expanded_in_its_place(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    start, end = tokenizer.start_image_token_id, tokenizer.end_image_token_id
    family = family_of(internvl().config)
    assert family.place_images([7, IMAGE, 8, IMAGE], [2, 1], tokenizer) == [
        *[7, start, IMAGE, IMAGE, end],
        *[8, start, IMAGE, end],
    ]
    with pytest.raises(UserError, match="shows 1 images of 2"):
        family.place_images([7, IMAGE], [2, 1], tokenizer)
    with pytest.raises(UserError, match="start_image_token"):
        family.place_images([IMAGE], [1], PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer))


def test_a_batch_without_images_runs_the_same_modules():
    model = internvl()
    family, calls = family_of(model.config), []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append("vision"))
    ids = torch.tensor([[1, 2, 3]])
    embeds = family.embed(model, ids, family.batch([{}, {}])).embeds
    assert calls == ["vision"] and torch.equal(embeds, model.get_input_embeddings()(ids))
    embeds.sum().backward()
    assert all(p.grad is not None for p in model.model.multi_modal_projector.parameters())


def test_a_tile_is_what_the_model_makes_of_it():
    model = internvl()
    family = family_of(model.config)
    patches = []
    layers = family.vision_layers(model)
    layers[0].register_forward_pre_hook(lambda module, args: patches.append(args[0].shape))
    features = family.image_features(model, family.blank_tiles(2, torch.zeros(())))
    assert features.shape == (2, family.tile.tokens, 32)
    assert patches == [(2, family.tile.patches, family.tile.width)] and len(layers) == 2
    fewer = type(model)(family.with_layers(1))
    assert len(family.vision_layers(fewer)) == len(fewer.get_decoder().layers) == 1
