import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, GenerationConfig

from multicoco.errors import UserError
from multicoco.models.backbone import load_backbone
from multicoco.models.tiny import TINY
from multicoco.models.vocabulary import add_latent_tokens


def test_tiny_model_is_loaded_like_the_real_one(tiny):
    backbone = load_backbone(str(tiny))
    assert backbone.model.config.model_type == "internvl"
    assert backbone.image_processor(Image.new("RGB", (84, 84)), return_tensors="pt").pixel_values.shape == (
        1,
        3,
        84,
        84,
    )
    assert backbone.model.config.image_token_id == backbone.tokenizer.context_image_token_id
    assert backbone.tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("own", [None, 3, [3, 5]])
def test_answers_end_at_the_tokenizers_and_at_the_models_own_tokens(tiny, own):
    backbone = load_backbone(str(tiny))
    backbone.model.generation_config.eos_token_id = own
    expected = {backbone.tokenizer.eos_token_id, *([] if own is None else [own] if isinstance(own, int) else own)}
    assert backbone.end_token_ids == sorted(expected)


def test_what_is_not_a_model_is_refused_with_its_name(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        load_backbone(str(tmp_path))


def test_weights_that_do_not_fit_are_refused(tiny, tmp_path):
    backbone = load_backbone(str(tiny))
    weights = backbone.model.state_dict()
    del weights["model.language_model.norm.weight"]
    backbone.save_pretrained(tmp_path, weights)
    with pytest.raises(UserError, match=r"missing keys.*norm\.weight"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"model_type": 3, "eos_token": null}'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_one_message_that_names_the_model(text_model, tmp_path, name, content):
    text_model(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_backbone(str(tmp_path))


PENALTIES = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "do_sample": True, "temperature": 0.5, "top_k": 3}


def test_the_models_own_generation_config_counts_for_nothing_but_its_ends(text_model, tmp_path):
    plain, own = load_backbone(text_model(tmp_path / "plain")), text_model(tmp_path / "own")
    (tmp_path / "own" / "generation_config.json").write_text(json.dumps({**PENALTIES, "eos_token_id": [2, 5]}))
    backbone = load_backbone(own)
    assert backbone.ignored_generation == PENALTIES and plain.ignored_generation == {}
    assert backbone.end_token_ids == [2, 5]
    ids, config = torch.tensor([[7, 8, 9]]), GenerationConfig(max_new_tokens=20, eos_token_id=399, pad_token_id=0)
    first, second = (b.model.generate(ids, generation_config=config) for b in (plain, backbone))
    assert torch.equal(first, second) and first.shape == (1, 23)


def test_a_saved_model_has_its_origins_files_and_loads_as_it_did(tiny, text_model, tmp_path):
    backbone = load_backbone(str(tiny))
    files = {
        "processor_config.json": b'{"image_seq_length": 9, "processor_class": "InternVLProcessor"}\n',
        "video_preprocessor_config.json": b'{"video_processor_type": "InternVLVideoProcessor"}',
        "generation_config.json": json.dumps(PENALTIES | {"temperature": 0.0}).encode(),  # invalid to transformers
    }
    backbone.save_pretrained(tmp_path / "origin")
    for name, content in files.items():
        (tmp_path / "origin" / name).write_bytes(content)
    for origin, copy in (("origin", "first"), ("first", "second")):  # and a checkpoint of a checkpoint
        backbone = load_backbone(str(tmp_path / origin))
        add_latent_tokens(backbone)
        backbone.save_pretrained(tmp_path / copy)
        for name, content in files.items():
            assert (tmp_path / copy / name).read_bytes() == content
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("origin", "second")]
    assert names[0] == names[1]
    assert backbone.ignored_generation.keys() >= {"repetition_penalty", "do_sample"}


@pytest.mark.parametrize("name", [name for name in TINY if TINY[name].sees_images and name != "generic"])
def test_a_saved_model_sees_images_as_it_was_trained_to(tiny_of, tmp_path, name):
    """Though transformers 5 saves a processor's parts in one file, and prefers what it says of images."""
    origin = shutil.copytree(tiny_of(name), tmp_path / "origin")
    own = json.loads((origin / "preprocessor_config.json").read_text())
    (origin / "preprocessor_config.json").unlink()
    parts = {"processor_class": "AnyProcessor", "image_seq_length": 9, "image_processor": own}
    (origin / "processor_config.json").write_text(json.dumps(parts))
    backbone = load_backbone(str(origin), max_image_tiles=3)
    backbone.image_processor.image_mean = (0.1, 0.2, 0.3)  # whatever the family sets, this is not as published
    backbone.save_pretrained(tmp_path / "saved")
    found = AutoImageProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    assert found.to_dict() == backbone.image_processor.to_dict()
    if name == "internvl":
        assert (own["max_patches"], found.max_patches) == (1, 3)
    saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert saved | {"image_processor": own} == parts


@pytest.mark.parametrize("name", TINY)
def test_a_saved_model_of_any_family_is_loaded_by_plain_transformers(tiny_of, tmp_path, name):
    backbone = load_backbone(str(tiny_of(name)))
    add_latent_tokens(backbone)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(1)
    backbone.save_pretrained(tmp_path)
    model, report = backbone.family.auto_model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and type(model) is type(backbone.model)
    expected = backbone.model.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    assert "<|latent|>" in AutoTokenizer.from_pretrained(tmp_path).get_vocab()


def test_a_chat_template_in_the_processors_file_is_found_and_kept(tiny, tmp_path):
    backbone = load_backbone(str(tiny))
    backbone.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").rename(tmp_path / "template")
    assert load_backbone(str(tmp_path)).tokenizer.chat_template is None
    template = (tmp_path / "template").read_text()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    found = load_backbone(str(tmp_path))
    assert found.tokenizer.chat_template == template
    found.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == template


def test_a_pad_token_beyond_the_embeddings_is_another_in_range(text_model, tmp_path):
    path = text_model(
        tmp_path, vocab_size=None, change_tokenizer=lambda t: t.add_special_tokens({"pad_token": "[PAD]"})
    )
    backbone = load_backbone(path)
    assert backbone.tokenizer.pad_token_id == backbone.tokenizer.eos_token_id
    backbone.save_pretrained(tmp_path / "saved")
    assert load_backbone(str(tmp_path / "saved")).tokenizer.pad_token_id == backbone.tokenizer.eos_token_id
