import pytest
import torch
from PIL import Image
from reference import IMAGE, IMAGE_TOKENS, internvl, qwen2
from transformers import AutoImageProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from multicoco.errors import UserError
from multicoco.models.authors import AUTHORS_TOKENS, load_authors_weights
from multicoco.models.backbone import load_backbone
from multicoco.models.checkpointing import checkpoint_activations
from multicoco.models.freezing import freeze
from multicoco.models.tiny import build_tiny_internvl, build_tokenizer
from multicoco.models.vocabulary import LATENT_TOKENS, add_latent_tokens


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny_internvl(
        ["Which tile is red?"] * 5, tmp_path_factory.mktemp("tiny"), hidden_size=32, text_layers=1
    )


def text_model(path, tied=False, vocab_size=400):
    """A text-only model directory whose tokenizer is smaller than its vocabulary."""
    tokenizer = build_tokenizer(["some text"] * 5, vocab_size=300)
    config = qwen2().config
    config.vocab_size, config.tie_word_embeddings = vocab_size or len(tokenizer), tied
    config.pad_token_id = tokenizer.pad_token_id
    type(qwen2())(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def embeddings(backbone):
    return backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings().weight


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


def test_tiny_model_is_the_same_for_a_seed(tiny, tmp_path):
    again = build_tiny_internvl(["Which tile is red?"] * 5, tmp_path / "again", hidden_size=32, text_layers=1)
    assert (again / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_text() == (tiny / "tokenizer.json").read_text()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocab_size", [400, None])  # room for new tokens, or none
def test_latent_tokens_start_as_a_known_token_on_both_sides(tmp_path, tied, vocab_size):
    backbone = load_backbone(text_model(tmp_path, tied, vocab_size))
    known = backbone.tokenizer.convert_tokens_to_ids("<|im_start|>")
    before = [weight[known].clone() for weight in embeddings(backbone)]
    others = [weight[:known].clone() for weight in embeddings(backbone)]
    add_latent_tokens(backbone, "<|im_start|>")
    ids = backbone.tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS))
    assert [backbone.latent_tokens.start, backbone.latent_tokens.latent, backbone.latent_tokens.end] == ids
    for weight, expected, rest in zip(embeddings(backbone), before, others, strict=True):
        assert all(torch.equal(weight[i], expected) for i in ids)
        assert torch.equal(weight[:known], rest)
    assert (embeddings(backbone)[0] is embeddings(backbone)[1]) == tied
    expected_size = vocab_size or -(-len(backbone.tokenizer) // 64) * 64
    assert backbone.model.config.vocab_size == len(embeddings(backbone)[0]) == expected_size


def test_a_checkpoint_that_has_latent_tokens_is_left_alone(tiny, tmp_path):
    backbone = load_backbone(str(tiny))
    add_latent_tokens(backbone)
    with torch.no_grad():
        embeddings(backbone)[0][backbone.latent_tokens.latent] += 1  # as training would
    backbone.save_pretrained(tmp_path)
    again = load_backbone(str(tmp_path))
    saved = embeddings(again)[0].clone()
    add_latent_tokens(again)
    assert again.latent_tokens == backbone.latent_tokens
    assert torch.equal(embeddings(again)[0], saved) and torch.equal(saved, embeddings(backbone)[0])
    assert len(again.tokenizer) == len(backbone.tokenizer)


def test_a_latent_token_is_one_control_token_and_the_rest_keep_their_ids(tiny):
    backbone = load_backbone(str(tiny))
    control = set(backbone.tokenizer.all_special_ids)
    add_latent_tokens(backbone)
    assert backbone.tokenizer.encode("<|latent|>", add_special_tokens=False) == [backbone.latent_tokens.latent]
    assert control < set(backbone.tokenizer.all_special_ids)
    assert backbone.tokenizer.decode([backbone.latent_tokens.latent], skip_special_tokens=True) == ""


@pytest.mark.parametrize("own", [None, 3, [3, 5]])
def test_answers_end_at_the_tokenizers_and_at_the_models_own_tokens(tiny, own):
    backbone = load_backbone(str(tiny))
    backbone.model.generation_config.eos_token_id = own
    expected = {backbone.tokenizer.eos_token_id, *([] if own is None else [own] if isinstance(own, int) else own)}
    assert backbone.end_token_ids == sorted(expected)


def test_an_unknown_initial_token_is_refused(tiny):
    with pytest.raises(UserError, match=r"latent_init_token.*<<"):
        add_latent_tokens(load_backbone(str(tiny)), "<<")


def test_half_of_the_latent_tokens_is_refused(tiny):
    backbone = load_backbone(str(tiny))
    backbone.tokenizer.add_tokens([LATENT_TOKENS[0]])
    with pytest.raises(UserError, match="not a MultiCoCo checkpoint"):
        add_latent_tokens(backbone)


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


@pytest.mark.parametrize("part", ["vision_tower", "projector", "language_model"])
def test_freeze_takes_exactly_that_part_out(part):
    model = internvl()
    freeze(model, **{part: True})
    names = {
        "vision_tower": ["vision_tower"],
        "projector": ["multi_modal_projector"],
        "language_model": ["language_model", "lm_head"],
    }
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != any(f"{n}." in name for n in names[part]), name


def test_freezing_what_is_not_there_or_everything_is_refused():
    with pytest.raises(UserError, match="has no vision_tower"):
        freeze(qwen2(), vision_tower=True)
    with pytest.raises(UserError, match="nothing is left"):
        freeze(qwen2(), language_model=True)


@pytest.fixture(scope="module")
def real_processor(tmp_path_factory):
    path = tmp_path_factory.mktemp("processor")
    # what OpenGVLab/InternVL3-1B-hf has in its preprocessor_config.json
    (path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": false, "do_resize": true, '
        '"size": {"height": 448, "width": 448}, "min_patches": 1, "max_patches": 12, "do_convert_rgb": true, '
        '"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}'
    )
    return AutoImageProcessor.from_pretrained(path, backend="pil", crop_to_patches=True, max_patches=12)


@pytest.mark.parametrize("size", [(448, 448), (640, 480), (1920, 300), (200, 1500), (1344, 1344), (100, 90)])
def test_real_geometry_cuts_into_the_canvas_and_a_thumbnail(real_processor, size):
    """448-pixel tiles, 1 to 12 of them, on the canvas that transformers chooses."""
    width, height = size
    columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
    tiles = real_processor(Image.new("RGB", size), return_tensors="pt").pixel_values
    expected = columns * rows + (columns * rows > 1)
    assert tiles.shape == (expected, 3, 448, 448)
    assert real_processor.get_number_of_image_patches(height, width) == expected


def authors_checkpoint(folder, path, tied, vocab_size):
    """What the authors' code saves: their three tokens behind the tokenizer's own, and the rows after them cut off."""
    theirs = load_backbone(text_model(folder, tied, vocab_size))
    torch.manual_seed(1)
    theirs.model.resize_token_embeddings(len(theirs.tokenizer) + 3, mean_resizing=False)
    for parameter in theirs.model.parameters():
        parameter.data.normal_()
    state = {f"base_causallm.{key}": tensor for key, tensor in theirs.model.state_dict().items()}
    torch.save(state | {"embedding.weight": theirs.model.get_input_embeddings().weight}, path)
    return theirs.model.eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocab_size", [400, None])
def test_weights_of_the_authors_code_give_its_logits(tmp_path, tied, vocab_size):
    theirs = authors_checkpoint(tmp_path / "model", tmp_path / "checkpoint_1", tied, vocab_size)
    backbone = load_backbone(str(tmp_path / "model"))
    own_words = len(backbone.tokenizer)
    load_authors_weights(backbone, tmp_path / "checkpoint_1")
    ids = backbone.tokenizer.convert_tokens_to_ids(list(AUTHORS_TOKENS))
    assert len(set(ids)) == 3 and backbone.latent_tokens is not None
    words = [5, 6, 7]
    with torch.no_grad():
        expected = theirs(torch.tensor([[*words, own_words, own_words + 2, own_words + 1, 8]])).logits
        logits = backbone.model.eval()(torch.tensor([[*words, ids[0], ids[2], ids[1], 8]])).logits
    torch.testing.assert_close(logits[..., [*range(own_words), *ids]], expected)


def test_weights_of_the_authors_code_before_the_latent_stages(tmp_path):
    theirs = load_backbone(text_model(tmp_path / "model"))
    torch.save({f"base_causallm.{k}": v + 1 for k, v in theirs.model.state_dict().items()}, tmp_path / "cot")
    backbone = load_backbone(str(tmp_path / "model"))
    load_authors_weights(backbone, tmp_path / "cot")
    assert backbone.latent_tokens is None
    for key, tensor in theirs.model.state_dict().items():
        torch.testing.assert_close(backbone.model.state_dict()[key], tensor + 1)


class Burglar:
    def __reduce__(self):
        return print, ("burgled",)


NORM = "base_causallm.model.norm.weight"


def cut_vocabulary(state):
    return {k: v[:-1] if "embed" in k or "lm_head" in k else v for k, v in state.items()}


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda s: {k: v for k, v in s.items() if k != NORM}, ["missing model.norm.weight"]),
        (lambda s: s | {"base_causallm.extra": torch.ones(1), "more": torch.ones(1)}, ["unexpected extra", "more"]),
        (lambda s: s | {NORM: torch.ones(7)}, ["model.norm.weight is (7,), the model's (32,)"]),
        (lambda s: s | {"embedding.weight": s["embedding.weight"] + 1}, ["embedding.weight and the base model's"]),
        (lambda s: s | {"x": Burglar()}, ["could run code"]),
        (lambda s: [1, 2], ["cannot be read as a state dict"]),
        (cut_vocabulary, ["embed_tokens.weight is", "lm_head.weight is"]),
    ],
)
def test_other_files_are_refused_with_all_that_does_not_fit(tmp_path, capsys, change, messages):
    path = tmp_path / "checkpoint_1"
    authors_checkpoint(tmp_path / "model", path, tied=False, vocab_size=400)
    torch.save(change(torch.load(path)), path)
    with pytest.raises(UserError) as caught:
        load_authors_weights(load_backbone(str(tmp_path / "model")), path)
    for message in [*messages, str(path)]:
        assert message in str(caught.value)
    assert "burgled" not in capsys.readouterr().out


@pytest.mark.parametrize(("frozen", "vision_calls"), [(False, 2), (True, 1)])
def test_only_what_backward_reaches_is_computed_again(frozen, vision_calls):
    model = internvl().train()
    freeze(model, vision_tower=frozen)
    checkpoint_activations(model)
    calls = {"vision": 0, "text": 0}

    def count(part, layer):
        layer.register_forward_pre_hook(lambda *_: calls.update({part: calls[part] + 1}))

    count("vision", model.model.vision_tower.encoder.layer[0].attention)
    count("text", model.get_decoder().layers[0].self_attn)
    ids = torch.tensor([[IMAGE] * IMAGE_TOKENS + [1, 2, 3]])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, 56, 56), labels=ids).loss.backward()
    assert calls == {"vision": vision_calls, "text": 2}
