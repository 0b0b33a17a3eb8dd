"""What holds for every family that sees images, against transformers' own forward over one row without padding.

Tolerances in fp64 are those of tests/latent/test_reasoner.py: transformers itself computes norms and angles in fp32.
"""

import copy

import pytest
import torch
from PIL import Image
from reference import (
    EOS,
    IMAGE,
    IMAGE_TOKENS,
    LATENT,
    PAD,
    SIGHTED,
    assert_same_gradients,
    gradients,
    own_logits,
    own_loss,
)
from torch import Tensor
from transformers import GenerationConfig

from multicoco.errors import UserError
from multicoco.latent.generate import log_likelihoods
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.self_check import self_check
from multicoco.models.backbone import load_backbone
from multicoco.models.checkpointing import checkpoint_activations
from multicoco.models.families import family_of
from multicoco.models.freezing import freeze
from multicoco.models.lora import add_lora, merge_lora
from multicoco.models.tiny import TINY
from multicoco.planning.geometry import geometry_of

GRIDS = ((4, 6), (2, 2), (6, 10))  # patches, 2 x 2 of which are an image token
Row = tuple[list[int], list[int], dict[str, Tensor]]


def pictures(name: str, n: int, rng: torch.Generator) -> tuple[list[int], dict[str, Tensor]]:
    """How many tokens each of n random images is, and all of them as the family's inputs."""
    if not n:
        return [], {}
    if name == "llava_onevision":
        return canvases(n, rng)
    if name in ("internvl", "internvl3_5", "idefics3", "smolvlm", "llava"):
        return [IMAGE_TOKENS] * n, {"pixel_values": torch.randn(n, 3, 56, 56, generator=rng)}
    grids = torch.tensor([(1, *GRIDS[int(torch.randint(3, (), generator=rng))]) for _ in range(n)])
    sizes = grids.prod(-1)
    pixels = torch.randn(int(sizes.sum()), 3 * 2 * 14 * 14, generator=rng)
    return (sizes // 4).tolist(), {"pixel_values": pixels, "image_grid_thw": grids}


def canvases(n: int, rng: torch.Generator) -> tuple[list[int], dict[str, Tensor]]:
    """One image in a whole and its tiles: 4 of them, whose 8 x 6 features, without padding, are made 6 x 4; or several
    images in a whole, 4 x 4 features, each. A new line after every row of features, or image."""
    tiles = 5 if n == 1 else n
    lie = {"image_sizes": torch.tensor([[112, 84]] * n), "batch_num_images": torch.tensor([n])}
    pixels = torch.randn(tiles, 3, 56, 56, generator=rng)
    return [16 + 6 * (4 + 1)] if n == 1 else [17] * n, {"pixel_values": pixels, **lie}


def make_row(name: str, n_images: int, n_latents: int, n_words: int, rng: torch.Generator) -> Row:
    """Words before, between and after the images, latents, and labelled words."""

    def words(n: int) -> list[int]:
        return torch.randint(0, 59, (n,), generator=rng).tolist()

    tokens, inputs = pictures(name, n_images, rng)
    context = words(n_words)
    for n in tokens:
        context += [IMAGE] * n + words(2)
    context += [LATENT] * n_latents
    answer = words(3)
    return context + answer, [-100] * len(context) + answer, inputs


def make_rows(name: str) -> list[Row]:
    """0, 1 and 3 images, and 0, 1 and many latents; images of some rows stand in later columns than others' latents."""
    rng = torch.Generator().manual_seed(7)
    shapes = [(3, 0, 1), (1, 1, 3), (0, 4, 2), (1, 2, 12)]
    return [make_row(name, *shape, rng) for shape in shapes]


def make_batch(name: str, rows: list[Row], dtype: torch.dtype, left: list[int] | None = None) -> dict[str, Tensor]:
    """Not aligned, or with so many columns of padding on the left of each."""
    left = left or [2 * i for i in range(len(rows))]
    length = max(pad + len(ids) for pad, (ids, _, _) in zip(left, rows, strict=True)) + 1
    batch = {
        "input_ids": torch.full((len(rows), length), PAD),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "labels": torch.full((len(rows), length), -100),
    }
    for i, (pad, (ids, labels, _)) in enumerate(zip(left, rows, strict=True)):
        here = slice(pad, pad + len(ids))
        batch["input_ids"][i, here], batch["labels"][i, here] = torch.tensor(ids), torch.tensor(labels)
        batch["attention_mask"][i, here] = 1
    inputs = family_of(SIGHTED[name]().config).batch([inputs for _, _, inputs in rows])
    return batch | {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}


def own_inputs(name: str, row: Row, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """(1, T) tokens of a row, and what the model's own forward takes beside them."""
    ids = torch.tensor([row[0]])
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in row[2].items()}
    return ids, family_of(SIGHTED[name]().config).own_inputs(ids, inputs)


def own_rows(name: str, rows: list[Row], dtype: torch.dtype) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """For `own_loss`."""
    return [(torch.tensor(row[0]), torch.tensor(row[1]), own_inputs(name, row, dtype)[1]) for row in rows]


@pytest.mark.parametrize("name", SIGHTED)
@pytest.mark.parametrize(
    ("dtype", "checkpointing", "of_loss", "of_gradients"),
    [
        (torch.float64, False, 1e-6, 1e-5),
        (torch.float64, True, 1e-6, 1e-5),
        (torch.float32, False, 1e-5, 1e-4),  # sums over some 100 positions of fp32 products
        (torch.float32, True, 1e-5, 1e-4),
    ],
)
def test_loss_and_every_gradient_equal_recomputing_the_whole_sequence(
    name, dtype, checkpointing, of_loss, of_gradients
):
    rows, expected, model = make_rows(name), SIGHTED[name]().to(dtype), SIGHTED[name]().to(dtype)
    for each in (expected, model):
        for path, parameter in each.named_parameters():
            # a bias of keys adds the same to all scores of a query that are not rotated: its gradient is rounding
            parameter.requires_grad_("vision" not in path or not path.endswith("k_proj.bias"))
    loss = own_loss(expected, own_rows(name, rows, dtype))
    loss.backward()
    reasoner = LatentReasoner(model, LATENT).train()
    if checkpointing:
        checkpoint_activations(reasoner.model)
    output = reasoner(**make_batch(name, rows, dtype))
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=of_loss, atol=0)
    unused = {path for path, p in expected.named_parameters() if p.requires_grad} - gradients(expected).keys()
    assert all("vision_tower" in path and ("layers.2" in path or "post_layernorm" in path) for path in unused)
    assert_same_gradients(reasoner.model, gradients(expected), of_gradients)


@pytest.mark.parametrize(
    "name", ["idefics3", "llava_onevision", "qwen2_5_vl"]
)  # qwen3_vl's later features ask where they are to go
def test_a_step_reads_nothing_from_the_device(name):
    """On the meta device there are no values to wait for: whatever reads one fails."""
    with torch.device("meta"):
        reasoner = LatentReasoner(SIGHTED[name](), LATENT, "reference").train()
    on_host = make_batch(name, make_rows(name), torch.float32)
    batch = {key: x if key in reasoner.family.host_inputs else x.to("meta") for key, x in on_host.items()}
    reasoner(**batch, on_host=on_host).loss.backward()
    assert reasoner.decoder.layers[0].self_attn.v_proj.weight.grad.is_meta


NO_WORDS = [IMAGE, LATENT]  # which a model of random weights may say
CONFIG = {
    "max_new_tokens": 6,
    "do_sample": False,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "suppress_tokens": NO_WORDS,
}


def prompts(name: str, rows: list[Row]) -> dict[str, Tensor]:
    """All rows end in the same column, before the words that are labelled."""
    cut = [(ids[:-3], labels[:-3], inputs) for ids, labels, inputs in rows]
    longest = max(len(ids) for ids, _, _ in cut)
    batch = make_batch(name, cut, torch.float64, left=[longest - len(ids) for ids, _, _ in cut])
    del batch["labels"]
    return batch | {key: batch[key][:, :longest] for key in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("name", SIGHTED)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_without_latents_generation_is_transformers_own_token_for_token(name, num_beams):
    rng, model = torch.Generator().manual_seed(3), SIGHTED[name](seed=1).double().eval()
    rows = [make_row(name, n_images, 0, n_words, rng) for n_images, n_words in ((3, 2), (0, 5), (1, 4))]
    config = GenerationConfig(**CONFIG, num_beams=num_beams)
    tokens = LatentReasoner(copy.deepcopy(model), LATENT).generate(
        **prompts(name, rows), n_passes=4, generation_config=config
    )
    for row, said in zip(rows, tokens.tolist(), strict=True):
        ids, inputs = own_inputs(name, (row[0][:-3], [], row[2]), torch.float64)
        own = model.generate(ids, **inputs, attention_mask=torch.ones_like(ids), generation_config=config)
        own = own[0, ids.shape[1] :].tolist()
        assert said[: len(own)] == own and set(said[len(own) :]) <= {PAD}


@pytest.mark.parametrize("name", SIGHTED)
def test_after_latents_greedy_tokens_are_those_of_recomputing(name):
    rows, model = make_rows(name), SIGHTED[name](seed=1).double().eval()
    reasoner = LatentReasoner(copy.deepcopy(model), LATENT)
    config = GenerationConfig(**CONFIG | {"max_new_tokens": 3})
    tokens = reasoner.generate(**prompts(name, rows), generation_config=config)
    for row, said in zip(rows, tokens.tolist(), strict=True):
        ids, new = row[0][:-3], []
        while len(new) < 3 and EOS not in new:
            logits = own_logits(model, *own_inputs(name, ([*ids, *new], [], row[2]), torch.float64))[0, -1]
            new.append(int(logits.index_fill(0, torch.tensor(NO_WORDS), -torch.inf).argmax()))
        assert said[: len(new)] == new


@pytest.mark.parametrize("name", SIGHTED)
def test_likelihoods_after_latents_are_those_of_recomputing(name):
    rows, model = make_rows(name), SIGHTED[name](seed=1).double().eval()
    reasoner = LatentReasoner(copy.deepcopy(model), LATENT)
    with torch.no_grad():
        passes = reasoner.run_passes(**prompts(name, rows))
    texts = torch.tensor([ids[-3:] for ids, _, _ in rows])
    measured = log_likelihoods(reasoner.model, passes, texts, texts)
    for row, likelihood in zip(rows, measured, strict=True):
        logits = own_logits(model, *own_inputs(name, row, torch.float64))[0, -4:-1]
        own = logits.log_softmax(-1).gather(-1, torch.tensor(row[0][-3:])[:, None]).sum()
        torch.testing.assert_close(likelihood, own, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", SIGHTED)
def test_a_batch_without_images_runs_the_same_modules_to_no_effect(name):
    rng, calls, used = torch.Generator().manual_seed(3), {}, {}
    rows = [make_row(name, 0, n_latents, 3, rng) for n_latents in (0, 2)]
    model = SIGHTED[name]().double()
    for kind, of_kind in (("some", make_rows(name)[:2]), ("none", rows)):
        reasoner = LatentReasoner(copy.deepcopy(model), LATENT)
        called = calls[kind] = []
        for path, module in reasoner.model.named_modules():
            if path.endswith("experts.act_fn"):  # one call for each expert that is chosen, where they run one by one
                continue
            module.register_forward_hook(lambda *_, path=path, called=called: called.append(path))
        output = reasoner(**make_batch(name, of_kind, torch.float64), n_passes=6)
        output.loss.backward()
        vision = reasoner.family.part(reasoner.model, "vision_tower")
        used[kind] = {path: p.grad for path, p in vision.named_parameters() if p.grad is not None}
    assert calls["none"] == calls["some"]
    torch.testing.assert_close(output.loss, own_loss(model, own_rows(name, rows, torch.float64)), rtol=1e-6, atol=0)
    assert used["none"].keys() == used["some"].keys() and used["none"]
    assert not any(gradient.any() for gradient in used["none"].values())


@pytest.mark.parametrize("name", SIGHTED)
def test_the_self_check_takes_images_and_finds_wrong_positions(name, monkeypatch):
    examples = [make_batch(name, [row], torch.float32, left=[1]) for row in make_rows(name)[:3]]
    reasoner = LatentReasoner(SIGHTED[name](), LATENT)
    self_check(reasoner, examples)
    own = type(reasoner.family).position_ids
    monkeypatch.setattr(type(reasoner.family), "position_ids", lambda *args: 2 * own(*args))
    with pytest.raises(UserError, match="do not compute what"):
        self_check(reasoner, examples)


@pytest.mark.parametrize("name", SIGHTED)
def test_the_parts_that_can_be_frozen_are_all_there_is(name):
    model = SIGHTED[name]()
    family, head = family_of(model.config), model.get_output_embeddings()
    parts = [family.part(model, part) for part in ("vision_tower", "projector", "language_model")]
    own = [{id(p) for p in part.parameters()} for part in (*parts, head)]
    assert not own[0] & own[1] and not own[2] & (own[0] | own[1])
    assert set.union(*own) == {id(p) for p in model.parameters()}
    freeze(model, vision_tower=True)
    assert {id(p) for p in model.parameters() if not p.requires_grad} == own[0]


@pytest.mark.parametrize("name", SIGHTED)
def test_adapters_are_in_the_language_model_alone_and_are_merged_into_what_computes_the_same(name):
    model = SIGHTED[name]().double()
    plain = copy.deepcopy(model)
    add_lora(model, rank=2, alpha=4, new_tokens=[LATENT])
    adapters = [p for key, p in model.named_parameters() if "lora_" in key]
    assert adapters and {id(p) for p in adapters} <= {id(p) for p in model.get_decoder().layers.parameters()}
    torch.manual_seed(0)
    for key, parameter in model.named_parameters():
        if "lora_" in key or "delta" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = make_batch(name, make_rows(name), torch.float64)
    expected = LatentReasoner(model.eval(), LATENT)(**batch).loss
    plain.load_state_dict(merge_lora(model, model.state_dict()))
    merged = LatentReasoner(plain.eval(), LATENT)(**batch).loss
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=0)  # sums of adapters are in fp32


@pytest.mark.parametrize("name", SIGHTED)
def test_a_tile_is_what_the_model_makes_of_it(name):
    model, seen = SIGHTED[name](), []
    family = family_of(model.config)
    layers, tile = family.vision_layers(model), family.tile
    layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    inputs = family.blank_tiles(2, torch.zeros(()))
    assert family.image_features(model, inputs).numel() == 2 * tile.tokens * 32
    left_out = name == "llava"  # one of three layers, whose output it does not take
    assert seen == [2 * tile.patches * tile.width] and len(layers) == 2 + left_out
    assert inputs["pixel_values"].numel() == 2 * torch.Size(tile.shape).numel()
    fewer = type(model)(family.with_layers(1))
    assert len(family.vision_layers(fewer)) == 1 + left_out and len(fewer.get_decoder().layers) == 1


@pytest.mark.parametrize("name", SIGHTED)
def test_it_is_planned_for(name):
    config, nothing = SIGHTED[name]().config, dict.fromkeys(("vision_tower", "projector", "language_model"), False)
    geometry = geometry_of(config, torch.bfloat16, nothing)
    assert geometry.parameters == sum(p.numel() for p in SIGHTED[name]().parameters())
    assert geometry.trace.vision(2, False).saved > geometry.trace.vision(1, False).saved > 0
    frozen = geometry_of(config, torch.bfloat16, nothing | {"vision_tower": True, "projector": True})
    assert frozen.trace.vision(1, False).saved == 0
    language = family_of(config).part(SIGHTED[name](), "language_model")
    assert frozen.trainable == sum(p.numel() for p in language.parameters())  # the head is tied


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in TINY if TINY[name].sees_images and name != "generic"])
@pytest.mark.parametrize("place", [(2, 0), (0, 1)])
def test_the_tokens_of_a_picture_lie_in_a_grid(tiny_of, name, place):
    """Where a picture is changed, the features of the tokens of that place change most."""
    backbone = load_backbone(str(tiny_of(name)))
    family, (column, row) = backbone.family, place
    plain = Image.new("RGB", (84, 56), "grey")
    images = family.read_images([plain.resize((56, 84)), plain], backbone.image_processor)
    image_token = backbone.model.config.image_token_id
    first, between, last, *_ = (token for token in range(5) if token != image_token)
    asked = [first, image_token, between, image_token, last]
    ids = torch.tensor(family.place_images(asked, images.tokens, backbone.tokenizer))
    found = family.columns_of_images(ids, images.tokens, backbone.tokenizer)
    assert torch.equal(torch.cat(found), (ids == image_token).nonzero()[:, 0]) and len(found) == 2
    assert found[0].max() < (ids == between).nonzero().max() < found[1].min()

    alone = family.read_images([plain], backbone.image_processor)  # where some are cut
    n_tokens = family.image_ids(alone.tokens[0], backbone.tokenizer).count(image_token)
    laid_out = family.laid_out(torch.arange(n_tokens), alone.tensors, 0)
    rows, columns = laid_out.shape
    cell = (84 // columns, 56 // rows)
    column, row = min(column, columns - 1), min(row, rows - 1)
    changed = plain.copy()
    noise = torch.randint(256, (cell[1], cell[0], 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    changed.paste(Image.fromarray(noise.numpy()), (column * cell[0], row * cell[1]))
    features = [
        family.image_features(backbone.model, family.read_images([picture], backbone.image_processor).tensors)
        for picture in (plain, changed)
    ]
    difference = (features[0] - features[1]).flatten(0, -2).norm(dim=-1)
    assert len(difference) == n_tokens
    assert divmod(int(difference[laid_out].argmax()), columns) == (row, column)
