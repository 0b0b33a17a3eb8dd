"""Recorded columns against a recomputation of the whole sequence for every latent, and against the same passes run
kernel by kernel. On a GPU they are CUDA graphs; without one, what stands in for a graph runs its column again, from the
same inputs into the same outputs.

Tolerances: as in test_reasoner.py. A recorded column adds up what it attends to over all of the cache, so in another
order than one that ends where it stands: 1e-12 in fp64.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    LATENT,
    assert_same_gradients,
    coconut_loss,
    gradients,
    internvl,
    llama,
    qwen2,
    qwen2_vl,
    text_model,
    windowed,
)
from torch import nn

from multicoco.latent.column_graphs import GRAIN, CudaRecorder, NotRecordable, Recording
from multicoco.latent.objective import Asked
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.checkpointing import checkpoint_activations
from multicoco.models.lora import add_lora

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOSS_TOLERANCE, GRADIENT_TOLERANCE, ORDER_TOLERANCE = 1e-6, 1e-5, 1e-12
MODELS = {
    "qwen2": qwen2,
    "llama": llama,
    "internvl": internvl,
    "positions of three axes": qwen2_vl,
    "learned positions": lambda: text_model("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0),
}


class Rerun:
    """Stands in for CUDA graphs."""

    def warm_up(self, run):
        run()

    def record(self, *runs):
        def recorded(run):
            outputs = run()

            def replay():
                with torch.enable_grad():
                    again = run()
                with torch.no_grad():
                    for kept, new in zip(outputs, again, strict=True):
                        kept.copy_(new)

            return Recording(outputs, replay)

        return [recorded(run) for run in runs]


class Counted:
    """A recorder that counts."""

    device_type = DEVICE

    def __init__(self):
        self.recorder = CudaRecorder() if DEVICE == "cuda" else Rerun()
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


KERNEL = "triton" if DEVICE == "cuda" else "reference"  # Triton's interpreter is slow


def recording(model, kernel: str = KERNEL, **options) -> tuple[LatentReasoner, Counted]:
    reasoner = LatentReasoner(model.to(DEVICE), LATENT, kernel, **options).train()
    for name, parameter in model.named_parameters():
        if "vis" in name or "projector" in name:  # of images, which these batches have none of
            parameter.requires_grad_(False)
    reasoner.column_graphs.recorder = recorder = Counted()
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


def test_by_tritons_kernels():
    reasoner, recorder = recording(qwen2().double(), "triton")
    check(reasoner, batch(TWO))
    assert recorder.replayed == 4


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
    reasoner, recorder = recording(qwen2().double(), gradient_passes=gradient_passes)
    plain = LatentReasoner(
        qwen2().double().to(DEVICE), LATENT, KERNEL, gradient_passes=gradient_passes, cuda_graphs=False
    )
    compared(reasoner, plain, batch(TWO), batch(TWO, 1))
    assert recorder.replayed == 8


def test_adapters_beside_frozen_weights():
    models = [qwen2().double() for _ in range(2)]
    for model in models:
        torch.manual_seed(0)
        add_lora(model, rank=2, alpha=4)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)  # zeros give the other factor no gradient
    reasoner, recorder = recording(models[0])
    plain = LatentReasoner(models[1].to(DEVICE), LATENT, KERNEL, cuda_graphs=False)
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


def test_in_evaluation_or_where_layers_are_asked_for_nothing_is_recorded():
    reasoner, recorder = recording(qwen2())
    with torch.no_grad():
        reasoner(**batch(TWO))
    columns = torch.zeros(2, 1, dtype=torch.long, device=DEVICE)
    inputs = {key: x for key, x in batch(TWO).items() if key != "labels"}
    assert reasoner.run_passes(**inputs, asked=Asked(tapped=columns)).layers is not None
    with torch.autocast(DEVICE, torch.bfloat16):
        reasoner(**batch(TWO)).loss.backward()
    assert recorder.recorded == 0


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
    def waits():
        torch.ones((), device="cuda").item()

    with pytest.raises(NotRecordable, match="a layer waits for the device"):
        CudaRecorder().warm_up(waits)
    reasoner, recorder = recording(internvl(experts=True).double())
    reasoner.model.set_experts_implementation("eager")  # it looks which experts are asked for
    with pytest.warns(UserWarning, match="a layer waits for the device"):
        check(reasoner, batch(TWO))
    assert recorder.recorded == 0


def test_a_second_backward_is_refused():
    reasoner, _ = recording(qwen2().double())
    loss = reasoner(**batch(TWO)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()
