"""Recorded columns against a recomputation of the whole sequence for every latent, and against the same passes run
kernel by kernel. On a GPU they are CUDA graphs; without one, what stands in for a graph runs the same operations again.

Tolerances: as in test_reasoner.py. A recorded column adds up what it attends to over all of the cache, so in another
order than one that ends where it stands: 1e-12 in fp64.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from reference import (
    IMAGE,
    LATENT,
    assert_same_gradients,
    coconut_loss,
    gradients,
    internvl,
    llama,
    qwen2,
    qwen2_vl,
    qwen3_vl,
    text_model,
    windowed,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multicoco.latent.column_graphs import FEW, GRAIN, KEPT
from multicoco.latent.objective import Asked
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.recording import CudaRecorder, Recording
from multicoco.models.checkpointing import checkpoint_activations
from multicoco.models.lora import add_lora

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOSS_TOLERANCE, GRADIENT_TOLERANCE, ORDER_TOLERANCE = 1e-6, 1e-5, 1e-12


def experts(implementation: str) -> nn.Module:
    model = internvl(experts=True)
    model.set_experts_implementation(implementation)
    return model


MODELS = {
    "qwen2": qwen2,
    "llama": llama,
    "internvl": internvl,
    "positions of three axes": qwen2_vl,
    "learned positions": lambda: text_model("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0),
    "experts": lambda: experts("batched_mm"),
    "layers called on rows": lambda: text_model("opt", dropout=0.0, ffn_dim=48, word_embed_proj_dim=32),
}


class Tape(TorchDispatchMode):
    """What a CUDA graph is, without a GPU: operations that have been run, to be run again on the same memory, without
    the Python around them."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function._schema.is_mutable or not any(x.alias_info for x in function._schema.returns):  # no view
            self.operations.append((function, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, out in self.operations:
            again = function(*args, **kwargs)
            if not function._schema.is_mutable:
                for kept, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(kept, torch.Tensor):
                        kept.copy_(new)


class Taper:
    def warm_up(self, run):
        run()

    def record(self, *runs):
        recordings = []
        for run in runs:
            with torch.random.fork_rng(), Tape() as tape:  # a graph's kernels do not run while it is recorded
                outputs = run()
            recordings.append(Recording(outputs, tape.replay))
        return recordings


class Counted:
    """A recorder that counts."""

    device_type = DEVICE

    def __init__(self):
        self.recorder = CudaRecorder() if DEVICE == "cuda" else Taper()
        self.recorded = self.replayed = 0

    def warm_up(self, run):
        self.recorder.warm_up(run)

    def record(self, *runs):
        def counted(recording):
            def replay():
                self.replayed += 1
                recording.replay()

            return Recording(recording.outputs, replay)

        self.recorded += len(runs)
        return [counted(recording) for recording in self.recorder.record(*runs)]


KERNEL = "triton" if DEVICE == "cuda" else "reference"  # Triton's interpreter is no operation of PyTorch's


def recording(model, kernel: str = KERNEL, **options) -> tuple[LatentReasoner, Counted]:
    reasoner = LatentReasoner(model.to(DEVICE), LATENT, kernel, **options).train()
    for name, parameter in model.named_parameters():
        of_images = "vis" in name or "projector" in name  # which these batches have none of
        # without rotary positions what a softmax is of does not change with it: its gradient is rounding alone
        if of_images or (model.config.model_type == "opt" and name.endswith("k_proj.bias")):
            parameter.requires_grad_(False)
    recorder = Counted()
    if reasoner.column_graphs is not None:
        reasoner.column_graphs.recorder = recorder
    return reasoner, recorder


def batch(rows: list[tuple[int, int, int, int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Of each row: columns of padding, of its prefix, latents and suffix."""
    rng = torch.Generator().manual_seed(seed)
    length = max(map(sum, rows))
    made = {"input_ids": torch.full((len(rows), length), 61), "labels": torch.full((len(rows), length), -100)}
    made["attention_mask"] = torch.zeros(len(rows), length, dtype=torch.long)
    for i, (left, prefix, latents, suffix) in enumerate(rows):
        own = slice(left, left + prefix + latents + suffix)
        ids = torch.randint(4, 58, (prefix + latents + suffix,), generator=rng)
        ids[prefix : prefix + latents] = LATENT
        made["input_ids"][i, own], made["attention_mask"][i, own] = ids, 1
        made["labels"][i, own.stop - suffix : own.stop] = ids[len(ids) - suffix :]
    return {key: x.to(DEVICE) for key, x in made.items()}


TWO = [(0, 4, 3, 3), (1, 3, 2, 4)]  # four passes: two columns between the first and the last


def check(reasoner: LatentReasoner, inputs: dict[str, torch.Tensor]) -> None:
    """Loss and gradients, of weights as they are."""
    expected = copy.deepcopy(reasoner.model)
    expected.zero_grad()
    expected.get_decoder().set_attn_implementation("sdpa")
    wanted = coconut_loss(expected, **inputs)
    wanted.backward()
    reasoner.zero_grad()
    loss = reasoner(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(reasoner.model, gradients(expected), GRADIENT_TOLERANCE)


@pytest.mark.parametrize(("name", "checkpointing"), [*((name, False) for name in MODELS), ("internvl", True)])
def test_they_are_recorded_once_and_replayed_for_other_batches(name, checkpointing):
    reasoner, recorder = recording(MODELS[name]().double())
    if checkpointing:
        checkpoint_activations(reasoner.model)
    for seed, rows in enumerate((TWO, [(3, 4, 3, 2), (0, 7, 2, 3)])):
        check(reasoner, batch(rows, seed))
    assert (recorder.recorded, recorder.replayed) == (4, 8)  # two columns, both ways
    assert reasoner.model.is_activation_checkpointing == checkpointing


@pytest.mark.parametrize("kernel", ["cpu", "flash"])
def test_kernels_that_the_host_tells_where_they_are_run_as_ever(kernel):
    if kernel == "cpu" and DEVICE == "cuda":
        pytest.skip("cannot run on a GPU")
    reasoner, recorder = recording(qwen2().double(), kernel)
    check(reasoner, batch(TWO))
    assert recorder.recorded == 0


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_batch_after_any_other(data):
    reasoner, _ = recording(qwen2().double())
    shape = st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 4), st.integers(1, 3))
    for seed in range(3):
        check(reasoner, batch(data.draw(st.lists(shape, min_size=1, max_size=3)), seed))


def compared(reasoner: LatentReasoner, plain: LatentReasoner, *batches: dict[str, torch.Tensor]) -> None:
    """With one that records nothing."""
    for inputs in batches:
        results = []
        for one in (reasoner, plain):
            one.zero_grad()
            out = one(**inputs)
            out.loss.backward()
            results.append((out.loss.detach(), out.thoughts.detach()))
        torch.testing.assert_close(*results, rtol=ORDER_TOLERANCE, atol=ORDER_TOLERANCE)
        assert_same_gradients(reasoner.model, gradients(plain.model), GRADIENT_TOLERANCE)


@pytest.mark.parametrize("gradient_passes", [0, 1])
def test_thoughts_whose_gradient_ends(gradient_passes):
    """After a step in which it did not."""
    reasoner, recorder = recording(qwen2().double())
    plain = LatentReasoner(qwen2().double().to(DEVICE), LATENT, KERNEL, cuda_graphs=False)
    compared(reasoner, plain, batch(TWO))
    reasoner.gradient_passes = plain.gradient_passes = gradient_passes
    compared(reasoner, plain, batch(TWO), batch(TWO, 1))
    assert recorder.replayed == 12


def test_where_activations_are_checkpointed_columns_keep_theirs():
    reasoner, _ = recording(qwen2().double())
    checkpoint_activations(reasoner.model)
    mlp, columns = reasoner.decoder.layers[0].mlp, []
    own = mlp.forward
    mlp.forward = lambda x: columns.append(x.shape[1]) or own(x)
    reasoner(**batch(TWO)).loss.backward()
    assert columns.count(1) == 4  # two that are run to warm up, and recorded


def test_adapters_beside_frozen_weights():
    reasoner, recorder = recording(with_adapters())
    plain = LatentReasoner(with_adapters().to(DEVICE), LATENT, KERNEL, cuda_graphs=False)
    for one in (reasoner, plain):
        put_out(one)
    compared(reasoner, plain, batch(TWO), batch(TWO, 1))
    assert recorder.replayed == 8


def test_dropout_is_drawn_anew_with_each_replay_and_is_the_same_both_ways():
    """Along a random direction, the gradient is the difference of two losses over what lies between them: to 1e-6, as
    it is all in fp64, if both are of one draw."""
    reasoner, recorder = recording(text_model("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.3).double())
    parameters = [*reasoner.decoder.parameters()]
    rng = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=rng).to(DEVICE) for p in parameters]

    def loss(seed: int, step: float) -> torch.Tensor:
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(along, alpha=step)
        torch.manual_seed(seed)
        return reasoner(**batch(TWO)).loss

    loss(0, 0.0).backward()
    first, other = loss(1, 0.0).item(), loss(2, 0.0).item()
    assert abs(first - other) > 1e-3
    reasoner.zero_grad()
    loss(1, 0.0).backward()
    slope = sum((p.grad * along).sum() for p, along in zip(parameters, direction, strict=True))
    above, below = loss(1, 1e-5).item(), loss(1, -2e-5).item()
    assert (above - below) / 2e-5 == pytest.approx(slope.item(), rel=1e-5)
    assert recorder.recorded == 4


def test_steps_whose_backwards_come_later_take_other_buffers():
    expected = []
    for seed in (0, 1):
        model = qwen2().double().to(DEVICE)
        coconut_loss(model, **batch(TWO, seed)).backward()
        expected.append(gradients(model))
    reasoner, _ = recording(qwen2().double())
    for order in ((0, 1), (1, 0)):
        losses = [reasoner(**batch(TWO, seed)).loss for seed in (0, 1)]
        for step in order:
            reasoner.zero_grad()
            losses[step].backward()
            assert_same_gradients(reasoner.model, expected[step], GRADIENT_TOLERANCE)


def test_a_forward_without_a_backward_leaves_nothing_behind():
    reasoner, recorder = recording(qwen2().double())
    for seed in range(2):
        reasoner(**batch(TWO, seed))
    check(reasoner, batch(TWO, 2))
    assert recorder.recorded == 4


def test_they_are_recorded_anew_where_weights_or_the_length_are_others():
    reasoner, recorder = recording(qwen2().double())
    check(reasoner, batch(TWO))
    norm = reasoner.decoder.layers[0].input_layernorm.weight
    norm.data = norm.data + 1
    check(reasoner, batch(TWO))
    assert recorder.recorded == 8
    norm.requires_grad_(False)
    check(reasoner, batch(TWO))
    assert recorder.recorded == 12
    norm.requires_grad_(True)
    check(reasoner, batch([(0, GRAIN, 3, 3), (1, GRAIN - 1, 2, 4)]))
    check(reasoner, batch(TWO))
    assert recorder.recorded == 16


@pytest.mark.parametrize(("gradient_passes", "thought"), [(None, 1), (1, 4)])
def test_a_loss_of_the_thoughts_alone(gradient_passes, thought):
    """Nothing behind them runs backward, nor does the last of them, and of some columns keys and values alone do; the
    gradients of two batches add up."""
    reasoner, recorder = recording(qwen2().double(), gradient_passes=gradient_passes)
    model = qwen2().double().to(DEVICE)
    plain = LatentReasoner(model, LATENT, KERNEL, gradient_passes=gradient_passes, cuda_graphs=False)
    for seed in range(2):
        for one in (reasoner, plain):
            one.zero_grad()
            for micro in range(2):
                out = one(**batch([(0, 4, 5, 3)], 2 * seed + micro))
                out.thoughts[:, thought].square().sum().backward()
        assert_same_gradients(reasoner.model, gradients(plain.model), GRADIENT_TOLERANCE)
        reasoner(**batch([(0, 4, 5, 3)], seed)).loss.backward()  # leaves other gradients in the buffers
    assert recorder.recorded == 8


def test_columns_of_images_that_enter_layers_are_not_recorded():
    """Qwen3-VL's, where spare passes cut an image."""
    results = []
    inputs = batch([(0, 6, 1, 3)]) | {"image_grid_thw": torch.tensor([[1, 4, 4]], device=DEVICE)}
    inputs["input_ids"][:, 1:5] = IMAGE
    pixels = torch.randn(16, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for cuda_graphs in (True, False):
        reasoner, recorder = recording(qwen3_vl().double(), cuda_graphs=cuda_graphs)
        reasoner(**inputs, pixel_values=pixels.to(DEVICE), n_passes=9).loss.backward()
        results.append(gradients(reasoner.model))
        assert (recorder.recorded > 0) == cuda_graphs
    assert_same_gradients(reasoner.model, results[0], GRADIENT_TOLERANCE)


def put_out(reasoner: LatentReasoner) -> None:
    for module in reasoner.decoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def merge(reasoner: LatentReasoner) -> None:
    for module in reasoner.decoder.modules():
        if isinstance(module, LoraLayer):
            module.merge()


def scale(reasoner: LatentReasoner) -> None:
    for module in reasoner.decoder.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(0.5)


def replace_a_weight(reasoner: LatentReasoner) -> None:
    norm = reasoner.decoder.layers[0].input_layernorm
    norm.weight = nn.Parameter(norm.weight.data)


def replace_the_model(reasoner: LatentReasoner) -> None:
    reasoner.model = LatentReasoner(with_adapters(1).to(DEVICE), LATENT).train().model


def switch_layers(reasoner: LatentReasoner) -> None:
    reasoner.decoder.layers[1].eval()


def with_adapters(seed: int = 0) -> nn.Module:
    model = qwen2(seed).double()
    torch.manual_seed(seed)
    add_lora(model, rank=2, alpha=4, dropout=0.5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)  # zeros give the other factor no gradient
        elif name.endswith("norm.weight"):
            parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize("change", [put_out, merge, scale, replace_a_weight, replace_the_model, switch_layers])
def test_what_has_changed_in_the_model_is_seen(change):
    """With dropout drawn alike."""
    reasoner, recorder = recording(with_adapters())
    plain = LatentReasoner(with_adapters().to(DEVICE), LATENT, KERNEL, cuda_graphs=False).train()
    for one in (reasoner, plain):
        one(**batch(TWO)).loss.backward()
    assert recorder.recorded == 4
    change(reasoner)
    change(plain)
    losses = []
    for one in (reasoner, plain):
        one.zero_grad()
        torch.manual_seed(3)
        losses.append(one(**batch(TWO)).loss)
        losses[-1].backward()
    if DEVICE == "cpu":  # on a GPU a graph draws other numbers of the same seed
        torch.testing.assert_close(*losses, rtol=ORDER_TOLERANCE, atol=0)
        assert_same_gradients(reasoner.model, gradients(plain.model), GRADIENT_TOLERANCE)
    assert recorder.recorded == 8


def test_recording_draws_no_numbers():
    """As a run that goes on records where the one before it had already."""
    losses = []
    for is_recorded in (True, False):
        reasoner, _ = recording(with_adapters())
        if is_recorded:
            reasoner(**batch(TWO)).loss.backward()
        torch.manual_seed(0)
        losses.append([reasoner(**batch(TWO, seed)).loss.item() for seed in range(2)])
    assert losses[0] == losses[1]


def test_few_recordings_are_kept():
    reasoner, _ = recording(qwen2().double())
    for rows in range(1, KEPT + 4):
        check(reasoner, batch(rows * [(0, 4, 3, 3)]))
    assert len(reasoner.column_graphs._batches) == KEPT


def test_recording_with_every_step_is_given_up():
    reasoner, recorder = recording(qwen2().double())
    layer = reasoner.decoder.layers[0]
    with pytest.warns(UserWarning, match="what they depend on changes all the time"):
        for step in range(FEW + 2):
            layer.counter = step
            check(reasoner, batch(TWO, step))
    assert recorder.recorded == 4 * FEW


def test_a_copy_of_the_reasoner_trains_by_itself():
    reasoner, _ = recording(qwen2().double())
    check(reasoner, batch(TWO))
    check(copy.deepcopy(reasoner), batch(TWO, 1))
    check(reasoner, batch(TWO, 2))


def test_in_evaluation_nothing_is_recorded():
    reasoner, recorder = recording(qwen2())
    with torch.no_grad():
        reasoner(**batch(TWO))
    assert recorder.recorded == 0


def test_under_autocast_nothing_is_recorded():
    reasoner, recorder = recording(qwen2())
    with torch.autocast(DEVICE, torch.bfloat16):
        reasoner(**batch(TWO)).loss.backward()
    assert recorder.recorded == 0


def test_where_layers_are_asked_for_nothing_is_recorded_and_afterwards_it_is():
    reasoner, recorder = recording(qwen2().double())
    columns = torch.zeros(2, 1, dtype=torch.long, device=DEVICE)
    inputs = {key: x for key, x in batch(TWO).items() if key != "labels"}
    assert reasoner.run_passes(**inputs, asked=Asked(tapped=columns)).layers is not None
    assert recorder.recorded == 0
    check(reasoner, batch(TWO))
    assert recorder.recorded == 4


def test_who_waits_for_a_module_is_called():
    reasoner, recorder = recording(qwen2().double())
    called = []
    handle = reasoner.decoder.layers[1].mlp.register_forward_hook(lambda *_: called.append(1))
    check(reasoner, batch(TWO))
    assert len(called) == 8 and recorder.recorded == 0
    handle.remove()
    check(reasoner, batch(TWO))
    assert len(called) == 8 and recorder.recorded == 4


def test_what_cannot_be_recorded_is_said_once_and_run(recwarn):
    reasoner, recorder = recording(windowed("mistral").double())
    for seed in range(2):
        check(reasoner, batch(TWO, seed))
    assert recorder.recorded == 0
    [said] = [str(one.message) for one in recwarn if "latent columns" in str(one.message)]
    assert said.endswith("run kernel by kernel, which is slower: attention in a window, or with a cap on scores")


@pytest.mark.skipif(DEVICE == "cpu", reason="only a GPU is waited for")
def test_what_waits_for_the_device_is_not_recorded():
    reasoner, recorder = recording(experts("eager").double())  # it looks which of them are asked for
    with pytest.warns(UserWarning, match="a layer waits for the device"):
        check(reasoner, batch(TWO))
    assert recorder.recorded == 0


def test_a_second_backward_is_refused():
    reasoner, _ = recording(qwen2().double())
    loss = reasoner(**batch(TWO)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()
