"""SIM-CoT's loss and gradients, written out step by step in plain PyTorch from the paper's equations.

Tolerances: as in tests/latent/test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

import copy

import pytest
import torch
from equations import sim_cot
from reference import LATENT, assert_same_gradients, gradients, qwen2_5_vl, rescaled
from reference import MODELS as PLAIN
from supervised import make_examples, make_method, make_reasoner, make_rows, training_loss, training_output
from torch import Tensor

from multicoco.models.checkpointing import checkpoint_activations
from multicoco.models.lora import add_lora, merge_lora

MODELS = PLAIN | {"gemma2": lambda: rescaled("gemma2"), "qwen2_5_vl": qwen2_5_vl}
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 2e-5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "stage", "filler", "keys", "projection"),
    [
        ("qwen2", 1, None, {"decoder": "copy"}, "none"),
        ("internvl", 3, 1, {"decoder": "copy", "weight": 0.5, "reads": "last"}, "mlp"),
        ("llama", 3, None, {"decoder": "copy", "freeze_decoder": True}, "none"),
        ("internvl", 1, None, {"decoder": "self", "weight": 2.0}, "none"),
        ("llama", 3, 0, {"decoder": "self", "reads": "last"}, "linear"),
        ("qwen2", 3, None, {"decoder": "copy", "decoder_layers": 1}, "none"),
        ("gemma2", 3, None, {"decoder": "copy"}, "none"),
        ("qwen2_5_vl", 3, 1, {"decoder": "copy"}, "linear"),
        ("qwen2_5_vl", 1, None, {"decoder": "self"}, "none"),
    ],
)
def test_loss_and_gradients(name, stage, filler, keys, projection, checkpointing):
    method = make_method("sim_cot", coconut={"projection": projection}, sim_cot=keys)
    expected, model, calls = MODELS[name]().double(), MODELS[name]().double(), []
    own, frozen = method.projection(expected), keys.get("freeze_decoder", False)
    parts = expected.get_decoder(), expected.get_output_embeddings()
    decoder, head = copy.deepcopy(parts) if keys["decoder"] == "copy" else parts
    if keys.get("decoder_layers"):
        decoder.layers = decoder.layers[:1]
        decoder.config.num_hidden_layers = 1
    if frozen:
        decoder.requires_grad_(False)
    loss = sum(sim_cot(method, expected, decoder, head, own, name, stage, filler))
    loss.backward()
    reasoner = make_reasoner(method, model).train()
    reader = reasoner.objective.decoder or reasoner.decoder
    reader.register_forward_hook(lambda *_: calls.append(1))
    if checkpointing:
        for part in {model, reader} - {reasoner.decoder}:
            checkpoint_activations(part)
    output = training_loss(method, reasoner, make_rows(method, name, stage, filler), stage)
    output.backward()
    assert len(calls) == 1 + (keys["decoder"] == "self") * method.passes(stage)
    torch.testing.assert_close(output, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)
    if own is not None:
        assert_same_gradients(reasoner.thought_source.projection, gradients(own), GRADIENT_TOLERANCE)
    if keys["decoder"] == "copy":
        assert_same_gradients(reader, gradients(decoder), GRADIENT_TOLERANCE)
        assert bool(gradients(reader)) != frozen
        if not frozen and name == "qwen2":  # whose head is not tied
            assert_same_gradients(reasoner.objective.head, gradients(head), GRADIENT_TOLERANCE)


class Reader:
    """The language model with adapters, by the equation: W x becomes W x + alpha / rank * B A x."""

    def __init__(self, decoder, adapters: dict[str, tuple[Tensor, Tensor]], alpha: float):
        self.decoder = decoder
        self.adapters = adapters
        self.alpha = alpha

    def get_input_embeddings(self):
        return self.decoder.get_input_embeddings()

    def __call__(self, **inputs):
        def add(down: Tensor, up: Tensor):
            return lambda module, args, out: out + self.alpha / len(down) * args[0] @ down.T @ up.T

        layers = {name: self.decoder.get_submodule(name) for name in self.adapters}
        hooks = [layer.register_forward_hook(add(*self.adapters[name])) for name, layer in layers.items()]
        output = self.decoder(**inputs)
        for hook in hooks:
            hook.remove()
        return output


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "rank"), [("internvl", None), ("qwen2", 3)])
def test_a_decoder_of_the_models_weights_and_adapters_of_its_own(name, rank, checkpointing):
    """With adapters of the run's, which are the thoughts' alone, and without."""
    method = make_method("sim_cot", sim_cot={"decoder": "adapters", "decoder_rank": 2, "decoder_alpha": 6.0})
    expected, model = MODELS[name]().double(), MODELS[name]().double()
    for each in (expected, model) if rank else ():
        torch.manual_seed(5)
        add_lora(each, rank, 4.0)
        for path, parameter in each.named_parameters():
            if "lora_" in path:
                torch.nn.init.normal_(parameter, std=0.1)
    reasoner = make_reasoner(method, model).train()
    twin = reasoner.objective.decoder
    adapters: dict[str, dict[str, Tensor]] = {}
    for path, parameter in twin.named_parameters():
        if "lora_" in path:
            torch.nn.init.normal_(parameter, std=0.1)
            layer, _, side = path.partition(".lora_")
            adapters.setdefault(layer, {})[side[0]] = parameter.detach().clone().requires_grad_()
    assert len(adapters) == 3 * 7  # every linear layer of three
    own = MODELS[name]().double() if rank else expected
    reader = Reader(own.get_decoder(), {layer: (of["A"], of["B"]) for layer, of in adapters.items()}, 6.0)
    loss = sum(sim_cot(method, expected, reader, own.get_output_embeddings(), None, name, 3, 1))
    loss.backward()
    if checkpointing:
        for part in (model, twin):
            checkpoint_activations(part)
    output = training_loss(method, reasoner, make_rows(method, name, 3, 1), 3)
    output.backward()
    torch.testing.assert_close(output, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)
    for path, parameter in twin.named_parameters():
        if "lora_" in path:
            layer, _, side = path.partition(".lora_")
            torch.testing.assert_close(
                parameter.grad, adapters[layer][side[0]].grad, rtol=GRADIENT_TOLERANCE, atol=1e-8
            )
    if not rank:  # what is saved of the model is what it was
        assert model.state_dict().keys() == MODELS[name]().state_dict().keys()


def test_a_batch_without_thoughts_calls_the_decoder_all_the_same():
    method, model, calls = make_method("sim_cot"), MODELS["llama"]().double(), []
    reasoner, rows = make_reasoner(method, model), make_rows(method, "llama", 0)
    reasoner.objective.decoder.register_forward_hook(lambda *_: calls.append(1))
    loss = training_loss(method, reasoner, rows, 0)
    loss.backward()
    assert len(calls) == 1 and loss.isfinite()
    assert all(p.grad is not None and not p.grad.any() for p in reasoner.objective.decoder.parameters())


def test_each_latent_step_writes_its_own_and_those_past_the_steps_nothing():
    method, [three, one, none, two] = make_method("sim_cot"), make_examples("llama")
    written = [method.supervision(tokens, 2, 0, "a").stretches for tokens in (three, one, none, two)]
    assert written[0] == [[], three.steps[0], [], three.steps[1]]
    assert written[1:3] == [[[], one.steps[0], [], []], [[]] * 4]
    assert written[3] == [[], two.steps[0], [], two.steps[1]]
    assert method.supervision(three, 3, 0, "a").stretches == [[], three.steps[0], [], three.steps[1] + three.steps[2]]


@pytest.mark.parametrize(
    ("coconut", "sim_cot", "says"),
    [
        ({"c_thought": 0}, {}, "sim_cot but coconut.c_thought is 0"),
        ({"thoughts": "noise"}, {}, "sim_cot but coconut.thoughts is noise"),
        (
            {"thoughts": "detached"},
            {},
            "sim_cot but coconut.thoughts is detached, so that a decoder which is left behind",
        ),
        (
            {"gradient_passes": 0, "norm": "embedding"},
            {},
            "sim_cot but coconut.gradient_passes is 0, so that a decoder",
        ),
        ({}, {"decoder": "self", "decoder_layers": 2}, "sim_cot.decoder_layers is 2 but sim_cot.decoder is self"),
        ({}, {"decoder": "self", "freeze_decoder": True}, "sim_cot.freeze_decoder is true but sim_cot.decoder is self"),
        ({}, {"decoder": "adapters"}, "sim_cot.decoder is adapters but sim_cot.decoder_rank is null"),
        ({}, {"decoder_alpha": 8.0}, "sim_cot.decoder_alpha is 8 but sim_cot.decoder is copy, which has no adapters"),
        ({}, {"decoder_rank": 4}, "sim_cot.decoder_rank is 4 but sim_cot.decoder is copy, which has none"),
        (
            {},
            {"decoder": "adapters", "decoder_rank": 4, "freeze_decoder": True},
            "freeze_decoder is true but sim_cot.decoder is adapters, which trains",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(coconut, sim_cot, says):
    with pytest.raises(ValueError, match=says):
        make_method("sim_cot", coconut=coconut, sim_cot=sim_cot)


@pytest.mark.parametrize(
    ("coconut", "sim_cot", "lora", "learns"),
    [
        ({}, {}, None, False),
        ({}, {"decoder": "adapters", "decoder_rank": 2}, 2, False),
        ({}, {"decoder": "adapters", "decoder_rank": 2}, None, True),
        ({"projection": "linear"}, {}, None, True),
    ],
)
def test_constant_thoughts_are_refused_where_nothing_that_stays_learns_of_the_decoders_loss(
    coconut, sim_cot, lora, learns
):
    found = []
    for weight in (1.0, 2.0):
        method = make_method("sim_cot", coconut=coconut, sim_cot=sim_cot | {"weight": weight}, lora={"rank": lora})
        model = MODELS["llama"]().double()
        if lora:
            add_lora(model, lora, 4.0)
        reasoner = make_reasoner(method, model).train()
        reasoner.gradient_passes = 0
        training_loss(method, reasoner, make_rows(method, "llama", 3), 3).backward()
        stays = {**gradients(model), **{f"own {k}": v for k, v in gradients(reasoner).items() if "projection" in k}}
        found.append(stays)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0]) != learns
    keys = {"coconut": coconut | {"gradient_passes": 0}, "sim_cot": sim_cot, "lora": {"rank": lora}}
    if learns:
        make_method("sim_cot", **keys)
    else:
        with pytest.raises(ValueError, match="gradient_passes is 0, so that a decoder which is left behind would be"):
            make_method("sim_cot", **keys)


@pytest.mark.parametrize("name", ["internvl", "qwen2"])  # whose head is tied, and not
def test_a_copy_of_a_model_with_adapters_has_them_merged(name):
    method = make_method("sim_cot", lora={"rank": 3})
    expected, model, plain = (MODELS[name]().double() for _ in range(3))
    for each in (expected, model):
        add_lora(each, 3, 4.0, new_tokens=[58, LATENT, 59])
        torch.manual_seed(5)
        for path, parameter in each.named_parameters():
            if "lora_" in path or "trainable_tokens" in path:
                torch.nn.init.normal_(parameter, std=0.1)
    plain.load_state_dict(merge_lora(expected, expected.state_dict()), strict=name == "qwen2")
    decoder, head = plain.get_decoder(), plain.get_output_embeddings()
    loss = sum(sim_cot(method, expected, decoder, head, None, name, 3, None))
    loss.backward()
    reasoner = make_reasoner(method, model).train()
    output = training_loss(method, reasoner, make_rows(method, name, 3), 3)
    output.backward()
    torch.testing.assert_close(output, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(model, gradients(expected), GRADIENT_TOLERANCE)
    assert_same_gradients(reasoner.objective.decoder, gradients(decoder), GRADIENT_TOLERANCE)
    assert_same_gradients(reasoner.objective.head, gradients(head), GRADIENT_TOLERANCE)


def test_what_is_known_on_the_host_changes_nothing():
    method, results = make_method("sim_cot"), []
    for on_host in (True, False):
        reasoner = make_reasoner(method, MODELS["qwen2"]().double()).train()
        output = training_output(method, reasoner, make_rows(method, "qwen2", 3, 1), 3, on_host)
        output.loss.backward()
        results.append([output.loss, *gradients(reasoner).values()])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("uniform_prob", [0.0, 0.5])
def test_what_the_decoder_is_called_with_is_planned_for(uniform_prob):
    shapes = []
    method = make_method("sim_cot", coconut={"uniform_prob": uniform_prob}, sim_cot={"reads": "last"})
    reasoner = make_reasoner(method, MODELS["llama"]())
    reasoner.objective.decoder.register_forward_pre_hook(
        lambda module, args, given: shapes.append(given["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    besides = [method.beside(tokens, 1) for tokens in make_examples("llama")]
    training_loss(method, reasoner, make_rows(method, "llama", 1), 1)
    [(rows, columns)] = shapes
    assert rows <= 1 + sum(beside.rows for beside in besides) and columns <= 1 + max(one.written for one in besides)
    if uniform_prob:  # all steps may be drawn, of which the last thoughts write those from the second on
        assert besides == [(2, 1, 3), (1, 1, 4), (0, 1, 0), (2, 1, 2)]
    else:
        assert besides == [(1, 1, 3), (1, 1, 4), (0, 1, 0), (1, 1, 1)] and (rows, columns) == (4, 5)


def test_a_copy_cannot_have_more_layers_than_the_model():
    method = make_method("sim_cot", sim_cot={"decoder_layers": 4})
    with pytest.raises(ValueError, match="the first 4 layers are asked for, it has 3"):
        method.objective(MODELS["llama"]())
