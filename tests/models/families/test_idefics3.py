"""SmolVLM's and Idefics3's tiles and prompts against transformers' own processors."""

import json

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Idefics3Processor,
    ProcessorMixin,
    SmolVLMProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from multicoco.data.example import Example
from multicoco.data.prompt import PromptBuilder
from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import load_backbone
from multicoco.models.families import family_of
from multicoco.models.vocabulary import add_latent_tokens

HALF = [0.5, 0.5, 0.5]
COMMON = {"do_image_splitting": True, "do_pad": True, "image_mean": HALF, "image_std": HALF, "resample": 1}
# what HuggingFaceM4/Idefics3-8B-Llama3 and HuggingFaceTB/SmolVLM-256M-Instruct have in their preprocessor_config.json
PROCESSORS = {
    "idefics3": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 1456},
        "max_image_size": {"longest_edge": 364},
        **COMMON,
    },
    "smolvlm": {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 2048},
        "max_image_size": {"longest_edge": 512},
        **COMMON,
    },
}
SIZES = [(8, 8), (64, 48), (500, 10), (3, 150), (3000, 2000)]
MOST = 4  # tiles, and the whole image


@pytest.fixture
def real(tmp_path):
    """The family of a real config, and its image processor."""

    def load(name, tiles):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
        side = PROCESSORS[name]["max_image_size"]["longest_edge"]
        vision = {"image_size": side, "patch_size": 14 if side == 364 else 16, "num_channels": 3}
        config = AutoConfig.for_model(name, vision_config=vision, scale_factor=2 if side == 364 else 4)
        family = family_of(config)
        return family, family.load_image_processor(str(tmp_path), tiles)

    return load


def own_processor(name, image_processor, tokenizer, length, monkeypatch):
    """transformers' own, SmolVLM's without its part for videos, which needs torchvision and num2words."""
    if name == "idefics3":
        return Idefics3Processor(image_processor, tokenizer, image_seq_len=length)
    check = ProcessorMixin.check_argument_for_proper_class
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
    monkeypatch.setattr(
        ProcessorMixin,
        "check_argument_for_proper_class",
        lambda self, kind, part: None if kind == "video_processor" else check(self, kind, part),
    )
    return SmolVLMProcessor(image_processor, tokenizer, video_processor=None, image_seq_len=length)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("tiles", [1, MOST])
def test_prompts_and_tiles_are_those_of_transformers_own_processor(name, tiles, tiny_of, real, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(tiny_of("idefics3"))
    family, image_processor = real(name, tiles)
    family.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    noise = torch.randint(256, (50, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = [Image.fromarray(noise.numpy()).resize(size) for size in SIZES]
    example = Example("1", "Which tile is red?", (b"",) * len(images), (), (), "blue", None)
    read = family.read_images(images, image_processor)
    prompt = PromptBuilder(tokenizer, images=family)(example, "reasoning", read.tokens).prompt
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": family.content("Which tile is red?", len(images))}],
        tokenize=False,
        add_generation_prompt=True,
    )
    own = own_processor(name, image_processor, tokenizer, family.tile.tokens, monkeypatch)
    expected = own(text=[text], images=[images], return_tensors="pt")
    assert prompt == expected.input_ids[0].tolist()
    assert torch.equal(family.own_inputs(torch.tensor([prompt]), read.tensors)["pixel_values"], expected.pixel_values)
    assert bool(expected.pixel_attention_mask.all())  # which is why the family has no use for it
    assert all((rows or 1) * (columns or 1) <= tiles for rows, columns in read.tokens)
    assert len(read.tensors["pixel_values"]) == sum(rows * columns + 1 for rows, columns in read.tokens)
    assert family.written(family.most_tiles(tiles)) == max(read.tokens)


@pytest.mark.parametrize("name", PROCESSORS)
def test_without_a_bound_an_image_has_the_tiles_of_the_real_processor(name, real):
    family, processor = real(name, 10**6)
    assert processor.size["longest_edge"] == PROCESSORS[name]["size"]["longest_edge"]
    for width, height in ((500, 10), (3000, 2000)):
        [(rows, columns)] = family.read_images([Image.new("RGB", (width, height))], processor).tokens
        assert processor.get_number_of_image_patches(height, width) == (rows * columns + 1, rows, columns)


def test_a_tokenizer_without_the_marks_of_tiles_is_refused(tiny_of):
    family = family_of(load_backbone(str(tiny_of("idefics3"))).model.config)
    with pytest.raises(UserError, match="no token <fake_token_around_image>"):
        family.image_ids((0, 0), AutoTokenizer.from_pretrained(tiny_of("text")))


def test_a_checkpoint_is_loaded_by_plain_transformers_and_computes_the_same(tiny_of, tmp_path):
    backbone = load_backbone(str(tiny_of("idefics3")))
    add_latent_tokens(backbone)
    backbone.save_pretrained(tmp_path)
    model, family = AutoModelForImageTextToText.from_pretrained(tmp_path), backbone.family
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    images = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    read = family.read_images([Image.new("RGB", (84, 100), "red")], images)
    prompt = PromptBuilder(tokenizer, images=family)(
        Example("1", "Which tile is red?", (b"",), (), (), "blue", None), "reasoning", read.tokens
    ).prompt
    ids = torch.tensor([prompt])
    own = model(ids, **family.own_inputs(ids, read.tensors)).logits
    passes = LatentReasoner(backbone.model, None)(
        ids, torch.ones_like(ids), n_passes=3, return_logits=True, **read.tensors
    )
    torch.testing.assert_close(passes.logits, own, rtol=1e-4, atol=1e-5)
