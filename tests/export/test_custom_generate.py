"""What comes with an exported model generates as MultiCoCo does. That it does so where there is no MultiCoCo:
tests/export/test_folder.py."""

import copy

import pytest
import torch
from reference import EOS, IMAGE, IMAGE_TOKENS, LATENT, MODELS, PAD, SIGHTED, windowed
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from multicoco.export import custom_generate
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.thoughts import Projected, Projection, hidden_state
from multicoco.latent.words import Words

CONFIG = {
    "max_new_tokens": 4,
    "do_sample": False,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "suppress_tokens": [IMAGE, LATENT],  # which a model of random weights may say
}


@pytest.fixture(autouse=True)
def latent(monkeypatch):
    monkeypatch.setattr(custom_generate, "LATENT_TOKEN_ID", LATENT)


def prompts(name: str) -> dict[str, Tensor]:
    """Rows of 0, 1 and many latents and of 0, 1 and 2 images, padded on the left and not aligned: images of one stand
    behind the first latent of another. One ends with a latent."""
    n_images = [0, 1, 0, 2] if name in SIGHTED else [0] * 4
    rows = [[1, 2, 3, 4], [5, LATENT, 7], [8, *[LATENT] * 5, *range(9, 20)], [14, LATENT, LATENT]]
    # LLaVA-OneVision shows one alone as a whole and once more in rows, several as wholes
    tokens = {1: 16 + 4 * (4 + 1), 2: 16 + 1} if name == "llava_onevision" else dict.fromkeys((1, 2), IMAGE_TOKENS)
    shown = [[20, *([IMAGE] * tokens.get(n, 0) + [21]) * n, *row] for n, row in zip(n_images, rows, strict=True)]
    length = max(map(len, shown)) + 1
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in shown])
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    rng, n = torch.Generator().manual_seed(3), sum(n_images)
    if "qwen" in name and n:  # of 2 x 8 patches, four of which are a token
        grids = torch.tensor([[1, 2, 8]] * n)
        pixels = torch.randn(n * 16, 3 * 2 * 14 * 14, generator=rng, dtype=torch.float64)
        return {**batch, "pixel_values": pixels, "image_grid_thw": grids}
    if name == "llava_onevision":
        n += 1
        batch |= {"image_sizes": torch.tensor([[56, 56]] * 3), "batch_num_images": torch.tensor([1, 2])}
    if n:
        batch["pixel_values"] = torch.randn(n, 3, 56, 56, generator=rng, dtype=torch.float64)
    return batch


def own_tokens(model, batch, config, thoughts=hidden_state) -> Tensor:
    reasoner = LatentReasoner(copy.deepcopy(model), LATENT, thoughts=thoughts)
    return reasoner.generate(**batch, generation_config=config)


def new_tokens(model, batch, config, **options) -> Tensor:
    if model.config.model_type in ("idefics3", "smolvlm") and "pixel_values" in batch:
        pixels = batch["pixel_values"]  # theirs are of rows and images
        batch = {**batch, "pixel_values": torch.stack([pixels[0], torch.zeros_like(pixels[0]), *pixels[1:]])}
        batch["pixel_values"] = batch["pixel_values"].unflatten(0, (2, 2))
    tokens = custom_generate.generate(model, **batch, generation_config=config, **options)
    length = batch["input_ids"].shape[1]
    assert torch.equal(tokens[:, :length], batch["input_ids"])  # as transformers' own
    return tokens[:, length:]


@pytest.mark.parametrize(
    ("name", "num_beams"),
    [*((name, 1) for name in (*SIGHTED, "llama", "gemma3_text", "gemma2")), ("qwen2", 2), ("qwen3_vl", 2)],
)
def test_tokens_are_multicocos_own(name, num_beams):
    of = SIGHTED | MODELS
    model = (of[name](1) if name in of else windowed(name)).eval()
    if name != "gemma2":  # transformers' eager attention, the only one with caps, makes no number of padding in fp64
        model.double()
    batch, config = prompts(name), GenerationConfig(**CONFIG, num_beams=num_beams)
    assert torch.equal(new_tokens(model, batch, config), own_tokens(model, batch, config))


@pytest.mark.parametrize(("kind", "to_embeddings"), [("none", True), ("linear", False), ("mlp", True)])
def test_thoughts_are_projected_as_in_training(tmp_path, kind, to_embeddings):
    model, batch, config = MODELS["qwen2"](1).double().eval(), prompts("qwen2"), GenerationConfig(**CONFIG)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=3)
    projected = Projected(hidden_state, Projection(model, kind, to_embeddings, seed=1))
    for parameter in projected.parameters():
        torch.nn.init.normal_(parameter)
    save_file(projected.state_dict(), tmp_path / "thoughts.safetensors")
    expected = own_tokens(model, batch, config, projected)
    assert not torch.equal(new_tokens(model, batch, config), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(custom_generate, "HAS_PROJECTION", True)
        assert torch.equal(new_tokens(model, batch, config, thoughts_from=str(tmp_path)), expected)
        model.name_or_path = str(tmp_path)  # as after from_pretrained
        assert torch.equal(new_tokens(model, batch, config), expected)
        model.name_or_path = str(tmp_path.parent)
        with pytest.raises(ValueError, match="give thoughts_from"):
            new_tokens(model, batch, config)


def test_thoughts_go_in_the_precision_that_the_model_was_loaded_in(tmp_path, monkeypatch):
    model = MODELS["qwen2"](1).eval()
    projected = Projected(hidden_state, Projection(model, "mlp", to_embeddings=True, seed=1)).bfloat16()
    save_file(projected.state_dict(), tmp_path / "thoughts.safetensors")
    monkeypatch.setattr(custom_generate, "HAS_PROJECTION", True)
    project = custom_generate.projection(model, str(tmp_path))
    thoughts = torch.cat([torch.randn(2, 32), torch.full((1, 32), 1e-9)])
    torch.testing.assert_close(project(thoughts), projected.float().projection(thoughts), rtol=1e-5, atol=1e-6)
    projected = Projected(hidden_state, Projection(model, "none", to_embeddings=True))
    save_file(projected.state_dict(), tmp_path / "thoughts.safetensors")
    custom_generate.read.cache_clear()
    project = custom_generate.projection(model, str(tmp_path))
    torch.testing.assert_close(project(thoughts), projected.projection(thoughts))  # the smallest one too


@pytest.mark.parametrize("name", ["internvl", "gemma2"])
def test_thoughts_are_of_words_as_in_training(tmp_path, monkeypatch, name):
    model = (SIGHTED[name](1) if name in SIGHTED else windowed(name)).eval()
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=3)
    batch, config = prompts(name), GenerationConfig(**CONFIG)
    if name != "gemma2":
        model.double()
    spoken = Projected(hidden_state, Words(model, 3, nothing=LATENT, seed=1))
    for parameter in spoken.parameters():
        torch.nn.init.normal_(parameter)
    save_file(spoken.state_dict(), tmp_path / "thoughts.safetensors")
    expected = own_tokens(model, batch, config, spoken)
    assert not torch.equal(new_tokens(model, batch, config), expected)
    monkeypatch.setattr(custom_generate, "HAS_PROJECTION", True)
    assert torch.equal(new_tokens(model, batch, config, thoughts_from=str(tmp_path)), expected)
    states = torch.eye(32, dtype=model.dtype)[:3][None]
    with torch.no_grad():
        monkeypatch.setattr(custom_generate, "LATENT_TOKEN_ID", int(model.lm_head(states[0, 1]).argmax()))
        said = custom_generate.mean_of_words(model, states)[0]
        words = [int(word) for word in model.lm_head(states[0]).argmax(-1)]
        there = [words[0], *[word for word in words[1:] if word != words[1]]]
        torch.testing.assert_close(said, model.get_input_embeddings()(torch.tensor(there)).mean(0))


def test_what_would_go_wrong_in_silence_is_refused():
    model, config = MODELS["qwen2"](), GenerationConfig(**CONFIG)
    for ids, mask in (([[LATENT, 1, 2]], [[1, 1, 1]]), ([[PAD, LATENT, 2]], [[0, 1, 1]])):
        with pytest.raises(ValueError, match="needs a token before it"):
            custom_generate.generate(model, torch.tensor(ids), attention_mask=torch.tensor(mask))
    with pytest.raises(ValueError, match="as input_ids"):
        custom_generate.generate(model)
    batch = prompts("qwen3_vl")
    ending = {"pixel_values": batch["pixel_values"][:16], "image_grid_thw": batch["image_grid_thw"][:1]}
    ending["input_ids"] = torch.tensor([[20, *[IMAGE] * IMAGE_TOKENS]])
    sighted = SIGHTED["qwen3_vl"]().double()
    with pytest.raises(ValueError, match="cannot end with an image"):
        custom_generate.generate(sighted, **ending, generation_config=config)
