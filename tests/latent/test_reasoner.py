"""The latent passes against a recomputation of the whole sequence for every latent (tests/reference.py).

Tolerances: models run in fp64, but transformers computes RMSNorm and the rotary angles in fp32, and the passes call
them on other shapes than the reference does, so results agree to fp32 rounding (1e-7), not to fp64's.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    EOS,
    IMAGE,
    IMAGE_TOKENS,
    LATENT,
    MODELS,
    PAD,
    RESCALED,
    WINDOWS,
    assert_same_gradients,
    coconut_logits,
    coconut_loss,
    gradients,
    internvl,
    own_loss,
    qwen2,
    rescaled,
    windowed,
)
from transformers import GenerationConfig

from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.checkpointing import checkpoint_activations

LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5  # relative to each parameter's largest gradient


def make_row(
    rng: torch.Generator, n_latents: int, prefix: int, suffix: int, image: bool
) -> tuple[list[int], list[int]]:
    """(input_ids, labels) of one unpadded row: [image] prefix, latents, suffix; the suffix is labelled."""

    def words(n: int) -> list[int]:
        return torch.randint(0, 60, (n,), generator=rng).tolist()

    context = [IMAGE] * IMAGE_TOKENS * image + words(prefix) + [LATENT] * n_latents
    answer = words(suffix)
    return context + answer, [-100] * len(context) + answer


def make_batch(rows: list[tuple[list[int], list[int]]], left: list[int]) -> dict[str, torch.Tensor]:
    """Pads rows by `left` columns on the left, and on the right to a common length."""
    length = max(pad + len(ids) for pad, (ids, _) in zip(left, rows, strict=True))
    batch = {
        "input_ids": torch.full((len(rows), length), PAD),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "labels": torch.full((len(rows), length), -100),
    }
    for i, (pad, (ids, labels)) in enumerate(zip(left, rows, strict=True)):
        batch["input_ids"][i, pad : pad + len(ids)] = torch.tensor(ids)
        batch["attention_mask"][i, pad : pad + len(ids)] = 1
        batch["labels"][i, pad : pad + len(ids)] = torch.tensor(labels)
    return batch


@st.composite
def batches(draw, image: bool):
    """Any composition: 0, 1 or many latents per row, aligned or not, padded on either side."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=4))
    left = [draw(st.integers(0, 3)) for _ in shapes]
    batch = make_batch([make_row(rng, *shape, image=image) for shape in shapes], left)
    if image:
        batch["pixel_values"] = torch.randn(len(shapes), 3, 56, 56, generator=rng, dtype=torch.float64)
    return batch


def check_loss_and_gradients(name, data, kernel):
    batch = data.draw(batches(image=name == "internvl"))
    expected = MODELS[name]().double()
    loss = coconut_loss(expected, **batch)
    loss.backward()

    reasoner = LatentReasoner(MODELS[name]().double(), LATENT, kernel).train()
    if data.draw(st.booleans()):
        checkpoint_activations(reasoner.model)
    output = reasoner(**batch)
    output.loss.backward()

    torch.testing.assert_close(output.loss, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(reasoner.model, gradients(expected), GRADIENT_TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(data=st.data(), kernel=st.sampled_from(["reference", "cpu", "flash"]))
def test_loss_and_gradients_equal_recomputation(name, data, kernel):
    check_loss_and_gradients(name, data, kernel)


@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_loss_and_gradients_with_triton_interpreted_equal_recomputation(data):
    check_loss_and_gradients("internvl", data, "triton")


def fixed_batch(image: bool = True) -> dict[str, torch.Tensor]:
    """Rows of 3, 0 and 1 latents, not aligned, one padded on the left."""
    rng = torch.Generator().manual_seed(3)
    rows = [make_row(rng, n, prefix, 4, image) for n, prefix in ((3, 5), (0, 4), (1, 2))]
    batch = make_batch(rows, left=[0, 1, 2])
    if image:
        batch["pixel_values"] = torch.randn(3, 3, 56, 56, generator=rng, dtype=torch.float64)
    return batch


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_equal_recomputation_in_fp32(name, checkpointing):
    batch = fixed_batch(image=name == "internvl")
    batch = {key: x.float() if x.is_floating_point() else x for key, x in batch.items()}
    expected, model = MODELS[name](), MODELS[name]()
    loss = coconut_loss(expected, **batch)
    loss.backward()
    reasoner = LatentReasoner(model, LATENT).train()
    if checkpointing:
        checkpoint_activations(model)
    output = reasoner(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=0)
    assert_same_gradients(model, gradients(expected), 1e-4)


def of_rows(model, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """The loss by transformers' own forward, row by row: in fp64 its eager attention makes no number of padding."""
    return own_loss(model, [(torch.tensor(ids), torch.tensor(labels), {}) for ids, labels in rows])


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("kernel", ["reference", "auto"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_with_a_window_equal_recomputation_past_it(kind, kernel, checkpointing):
    rng = torch.Generator().manual_seed(3)
    rows = [make_row(rng, n, prefix, 4, image=False) for n, prefix in ((3, 9), (0, 4), (1, 2), (2, 12))]
    batch, expected = make_batch(rows, left=[0, 9, 2, 1]), windowed(kind).double()
    loss = of_rows(expected, rows)
    loss.backward()
    reasoner = LatentReasoner(windowed(kind).double(), LATENT, kernel).train()
    if checkpointing:
        checkpoint_activations(reasoner.model)
    output = reasoner(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(reasoner.model, gradients(expected), GRADIENT_TOLERANCE)
    wide = LatentReasoner(windowed(kind, sliding_window=17).double(), LATENT)(**batch).loss
    assert abs(wide - loss) > 1e-3  # at which it would have been noticed


NEUTRAL = {"embedding_multiplier": 1, "attn_logit_softcapping": None, "final_logit_softcapping": None}
FACTORS = ("logit_scale", "logits_scaling")


@pytest.mark.parametrize(
    ("kind", "precision", "tolerances"),
    [*((kind, torch.float64, (1e-6, 1e-5)) for kind in RESCALED), ("gemma2", torch.float32, (1e-5, 1e-4))],
)
def test_scores_and_logits_that_are_scaled_and_capped_equal_recomputation(kind, precision, tolerances):
    rng = torch.Generator().manual_seed(3)
    rows = [make_row(rng, n, prefix, 4, image=False) for n, prefix in ((3, 9), (0, 4), (1, 2), (2, 12))]
    batch, expected = make_batch(rows, left=[0, 9, 2, 1]), rescaled(kind).to(precision)
    loss = of_rows(expected, rows)
    loss.backward()
    reasoner = LatentReasoner(rescaled(kind).to(precision), LATENT).train()
    checkpoint_activations(reasoner.model)
    output = reasoner(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=tolerances[0], atol=0)
    assert_same_gradients(reasoner.model, gradients(expected), tolerances[1])
    for key in RESCALED[kind].keys() & {*NEUTRAL, *FACTORS}:  # each of them would have been noticed
        without = rescaled(kind, **{key: NEUTRAL.get(key, 1.0)}).to(precision)
        assert abs(of_rows(without, rows) - loss) > 1e-3


@pytest.mark.parametrize("kind", WINDOWS)
def test_behind_a_window_generated_tokens_are_transformers_own(kind):
    rng, model = torch.Generator().manual_seed(5), windowed(kind).double().eval()
    rows = [make_row(rng, 0, prefix, 1, image=False) for prefix in (3, 13, 7)]
    batch = make_batch(rows, left=[10, 0, 6])
    del batch["labels"]
    config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=EOS, pad_token_id=PAD)
    tokens = LatentReasoner(copy.deepcopy(model), LATENT).generate(**batch, n_passes=4, generation_config=config)
    for (ids, _), said in zip(rows, tokens.tolist(), strict=True):
        own = model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :].tolist()
        assert said[: len(own)] == own


@pytest.mark.parametrize("frozen", ["vision_tower", "multi_modal_projector", "language_model"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_parts_leave_the_other_gradients_right(frozen, checkpointing):
    batch, expected = fixed_batch(), internvl().double()
    model = copy.deepcopy(expected)
    for m in (expected, model):
        getattr(m.model, frozen).requires_grad_(False)
    coconut_loss(expected, **batch).backward()
    reasoner = LatentReasoner(model, LATENT).train()
    if checkpointing:
        checkpoint_activations(model)
    reasoner(**batch).loss.backward()
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)


@pytest.mark.parametrize("tied", [True, False])
def test_fp32_agrees_to_fp32_rounding(tied):
    batch = fixed_batch()
    batch["pixel_values"] = batch["pixel_values"].float()
    expected = internvl(tied=tied)
    loss = coconut_loss(expected, **batch)
    loss.backward()
    reasoner = LatentReasoner(internvl(tied=tied), LATENT)
    output = reasoner(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=0)
    assert_same_gradients(reasoner.model, gradients(expected), 1e-4)  # sums over ~50 positions of fp32 products


def test_bf16_runs_and_agrees_to_bf16_rounding():
    batch = fixed_batch()
    loss = coconut_loss(internvl().double(), **batch)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    output = LatentReasoner(internvl().bfloat16(), LATENT)(**batch)
    assert output.loss.dtype == torch.float32  # cross-entropy is taken in fp32
    torch.testing.assert_close(output.loss.double(), loss, rtol=0.02, atol=0)  # 8 bits of mantissa, a few layers


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_agrees_to_bf16_rounding(name, checkpointing):
    batch = fixed_batch(image=name == "internvl")
    expected = MODELS[name]().double()
    loss = coconut_loss(expected, **batch)
    loss.backward()
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].float()
    reasoner = LatentReasoner(MODELS[name](), LATENT).train()
    if checkpointing:
        checkpoint_activations(reasoner.model)
    with torch.autocast("cpu", torch.bfloat16):
        output = reasoner(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss.double(), loss, rtol=0.02, atol=0)  # 8 bits of mantissa, a few layers
    for key, gradient in gradients(reasoner.model).items():
        assert gradient.dtype == torch.float32
        wanted = expected.get_parameter(key).grad
        assert (gradient - wanted).norm() < 0.1 * wanted.norm() + 1e-6, key  # products of many such factors


def test_a_row_does_not_depend_on_its_batch_mates():
    batch = fixed_batch()
    reasoner = LatentReasoner(internvl().double(), LATENT)
    together = reasoner(**batch, return_logits=True).logits
    for i in range(3):
        alone = reasoner(**{key: value[i : i + 1] for key, value in batch.items()}, return_logits=True).logits
        real = batch["attention_mask"][i].bool()
        torch.testing.assert_close(alone[0, real], together[i, real], rtol=1e-5, atol=1e-6)


def test_logits_equal_recomputation_at_every_real_position():
    batch = fixed_batch()
    labels = batch.pop("labels")
    logits = LatentReasoner(internvl().double(), LATENT)(**batch, return_logits=True).logits
    expected = coconut_logits(internvl().double(), **batch)
    real = batch["attention_mask"].bool()
    assert logits.shape == (*labels.shape, 64)
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-5, atol=1e-6)


def test_thoughts_are_the_hidden_states_before_the_latents():
    batch = fixed_batch()
    model = internvl().double()
    output = LatentReasoner(model, LATENT)(**batch)
    columns = (batch["input_ids"] == LATENT).any(0).nonzero()[:, 0].tolist()
    assert output.thoughts.shape == (3, len(columns), 32)
    for i, column in enumerate(columns):
        for row in range(3):
            is_latent = batch["input_ids"][row, column] == LATENT
            assert bool(output.thoughts[row, i].abs().sum() > 0) == bool(is_latent)


@pytest.mark.parametrize("n_passes", [7, 9, 12])
def test_extra_passes_change_nothing(n_passes):
    batch = fixed_batch()
    reasoner = LatentReasoner(internvl().double(), LATENT)
    calls = []
    reasoner.decoder.register_forward_hook(lambda *_: calls.append(1))
    plain = reasoner(**batch).loss
    plain.backward()
    expected = gradients(reasoner.model)
    reasoner.zero_grad()
    calls.clear()
    padded = reasoner(**batch, n_passes=n_passes).loss
    padded.backward()
    assert len(calls) == n_passes
    torch.testing.assert_close(padded, plain, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(reasoner.model, expected, GRADIENT_TOLERANCE)


def test_a_batch_without_labels_gives_zero_loss_and_gradients():
    batch = fixed_batch()
    batch["labels"][:] = -100
    reasoner = LatentReasoner(internvl().double(), LATENT)
    loss = reasoner(**batch).loss
    loss.backward()
    assert loss == 0
    assert all((g == 0).all() for g in gradients(reasoner.model).values())


def test_a_batch_without_images_still_runs_the_vision_tower_and_ignores_it():
    batch = fixed_batch(image=False)
    model = internvl().double()
    reasoner = LatentReasoner(model, LATENT)
    reasoner(**batch).loss.backward()
    assert all(p.grad is not None for p in model.model.vision_tower.encoder.parameters())
    expected = internvl().double()
    coconut_loss(expected, **batch).backward()
    actual = gradients(model)
    for name, gradient in gradients(expected).items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-5, atol=1e-8)


def test_vision_features_are_computed_once_however_many_latents():
    batch, model, calls = fixed_batch(), internvl().double(), []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    LatentReasoner(model, LATENT)(**batch, n_passes=8)
    assert len(calls) == 1


def test_loss_divisor_replaces_the_number_of_labelled_positions():
    batch = fixed_batch()
    reasoner = LatentReasoner(internvl().double(), LATENT)
    labelled = int((batch["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(
        reasoner(**batch, loss_divisor=2.0 * labelled).loss, reasoner(**batch).loss / 2, rtol=1e-12, atol=0
    )


def test_given_positions_take_the_place_of_the_familys():
    batch = make_batch([make_row(torch.Generator().manual_seed(0), 0, 4, 5, image=False)], left=[0])
    given = {"attention_mask": batch["attention_mask"], "position_ids": 3 * torch.arange(9)[None]}
    own = qwen2().double()(batch["input_ids"], **given).logits
    out = LatentReasoner(qwen2().double(), LATENT)(batch["input_ids"], **given, n_passes=3, return_logits=True)
    torch.testing.assert_close(out.logits, own, rtol=1e-5, atol=1e-6)


def test_a_latent_without_a_token_before_it_is_refused():
    batch = make_batch([([LATENT, 1, 2], [-100, 1, 2])], left=[1])
    with pytest.raises(ValueError, match="no token before it"):
        LatentReasoner(qwen2(), LATENT)(**batch)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_types", ["full_attention", "linear_attention", "full_attention"]),
        ("attention_dropout", 0.1),
        ("final_logit_softcapping", 30.0),
    ],
)
def test_models_that_the_passes_would_get_wrong_are_refused(key, value):
    model = qwen2()
    setattr(model.config, key, value)
    with pytest.raises(ValueError, match="linear_attention" if key == "layer_types" else key):
        LatentReasoner(model, LATENT)


def test_a_model_whose_attention_never_sees_the_segment_fails_rather_than_going_wrong():
    reasoner = LatentReasoner(qwen2(), LATENT)
    layer = reasoner.decoder.layers[1]
    forward = layer.self_attn.forward
    layer.self_attn.forward = lambda *args, segment, **kwargs: forward(*args, **kwargs)
    with pytest.raises(RuntimeError, match="size"):
        reasoner(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4))


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="'fast' is not one of auto, reference, cpu, triton, flash"):
        LatentReasoner(qwen2(), LATENT, kernel="fast")


def test_bytes_saved_for_backward_grow_with_the_columns_and_not_with_the_passes():
    """The same sequence cut into more passes: K and V must not be saved once per pass."""

    def saved_bytes(n_passes: int) -> int:
        reasoner, storages = LatentReasoner(qwen2(), LATENT), {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in reasoner.parameters()}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        ids = torch.arange(96)[None] % 50
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = reasoner(ids, torch.ones_like(ids), labels=ids, n_passes=n_passes)
        assert output.loss.grad_fn is not None
        return sum(storages.values())

    one, many = saved_bytes(1), saved_bytes(17)
    keys_and_values = 3 * 2 * 96 * 2 * 8 * 4  # layers, K and V, columns, heads, head size, fp32
    assert many - one < keys_and_values  # copies at 16 more passes would be 16 times that


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "internvl"])
def test_a_step_reads_nothing_from_the_device(name, checkpointing):
    """On the meta device there are no values to wait for: whatever reads one fails."""
    with torch.device("meta"):
        reasoner = LatentReasoner(MODELS[name](), LATENT, "reference").train()
    if checkpointing:
        checkpoint_activations(reasoner.model)
    batch = fixed_batch(image=name == "internvl")
    batch = {key: x.float() if x.is_floating_point() else x for key, x in batch.items()}
    moved = {key: x.to("meta") for key, x in batch.items()}
    with pytest.raises((RuntimeError, NotImplementedError)):
        reasoner(**moved)
    output = reasoner(**moved, on_host={key: batch[key] for key in ("input_ids", "attention_mask", "labels")})
    output.loss.backward()
    assert reasoner.decoder.layers[2].self_attn.v_proj.weight.grad.is_meta
    assert output.thoughts.shape[1] == int((batch["input_ids"] == LATENT).any(0).sum())


@pytest.mark.parametrize("kernel", ["reference", "flash"])
def test_what_is_known_on_the_host_changes_nothing(kernel):
    batch, results = fixed_batch(), []
    for on_host in (None, {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}):
        reasoner = LatentReasoner(internvl().double(), LATENT, kernel).train()
        output = reasoner(**batch, on_host=on_host)
        output.loss.backward()
        results.append([output.loss, output.thoughts, *gradients(reasoner.model).values()])
    assert all(map(torch.equal, *results))


def test_a_step_after_generating_in_inference_mode_can_train():
    reasoner = LatentReasoner(qwen2(), LATENT)
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        reasoner(ids, torch.ones_like(ids))
    reasoner(ids, torch.ones_like(ids), labels=ids).loss.backward()
    assert reasoner.decoder.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0


def test_rotary_tables_are_made_once_a_step_and_the_model_is_left_as_it_was():
    reasoner = LatentReasoner(qwen2(), LATENT)
    rotary, calls = reasoner.decoder.rotary_emb, []
    ids = torch.tensor([[5, LATENT, LATENT, 6, 7]])
    expected = reasoner(ids, torch.ones_like(ids), return_logits=True).logits
    assert "forward" not in rotary.__dict__
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: calls.append(position_ids.shape) or forward(x, position_ids)
    wrapped = rotary.forward
    torch.testing.assert_close(reasoner(ids, torch.ones_like(ids), return_logits=True).logits, expected)
    assert calls == [(1, 5)] and rotary.forward is wrapped


class TestGenerate:
    """Against greedy decoding that computes the whole sequence again for every new token."""

    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=EOS, pad_token_id=PAD)

    def prompts(self) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(5)
        rows = [make_row(rng, n, prefix, suffix, image=True) for n, prefix, suffix in ((3, 5, 1), (0, 4, 2), (2, 2, 1))]
        longest = max(len(ids) for ids, _ in rows)
        batch = make_batch(rows, left=[longest - len(ids) for ids, _ in rows])
        del batch["labels"]
        return batch | {"pixel_values": torch.randn(3, 3, 56, 56, generator=rng, dtype=torch.float64)}

    def greedy(self, model, row: dict[str, torch.Tensor]) -> list[int]:
        ids = row["input_ids"][:, row["attention_mask"][0].bool()]
        new = []
        for _ in range(self.config.max_new_tokens):
            logits = coconut_logits(model, ids, torch.ones_like(ids), row["pixel_values"])
            new.append(int(logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([new[-1:]])], dim=1)
            if new[-1] == EOS:
                break
        return new

    @pytest.mark.parametrize("n_passes", [None, 8])
    def test_greedy_tokens_equal_recomputation_for_every_row(self, n_passes):
        batch, model = self.prompts(), internvl(seed=1).double().eval()
        model.lm_head.weight.data *= 20  # spreads the logits, so that rounding cannot decide a token
        tokens = LatentReasoner(copy.deepcopy(model), LATENT).generate(
            **batch, n_passes=n_passes, generation_config=self.config
        )
        for i in range(3):
            expected = self.greedy(model, {key: value[i : i + 1] for key, value in batch.items()})
            assert tokens[i, : len(expected)].tolist() == expected
            assert (tokens[i, len(expected) :] == PAD).all()

    def test_a_prompt_that_ends_in_a_latent_token(self):
        rng = torch.Generator().manual_seed(5)
        ids = torch.tensor([make_row(rng, 3, 5, 0, image=False)[0]])
        model = qwen2(seed=1).double().eval()
        tokens = LatentReasoner(copy.deepcopy(model), LATENT).generate(
            ids, torch.ones_like(ids), generation_config=self.config
        )
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": None}
        assert tokens[0].tolist()[: len(self.greedy(model, row))] == self.greedy(model, row)

    def test_one_beam_of_several_keeps_the_prompt_of_its_row(self):
        batch, model = self.prompts(), internvl(seed=1).double().eval()
        reasoner = LatentReasoner(model, LATENT)
        beams = GenerationConfig(**(self.config.to_dict() | {"num_beams": 3}))
        together = reasoner.generate(**batch, generation_config=beams)
        for i in range(3):
            alone = reasoner.generate(**{k: v[i : i + 1] for k, v in batch.items()}, generation_config=beams)
            n = min(alone.shape[1], together.shape[1])
            assert together[i, :n].tolist() == alone[0, :n].tolist()

    def test_sampling_gives_that_many_sequences(self):
        sampled = GenerationConfig(**(self.config.to_dict() | {"do_sample": True, "num_return_sequences": 2}))
        tokens = (
            LatentReasoner(internvl().double(), LATENT).eval().generate(**self.prompts(), generation_config=sampled)
        )
        assert tokens.shape[0] == 6
