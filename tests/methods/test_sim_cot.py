"""SIM-CoT's loss and gradients, written out step by step in plain PyTorch from the paper's equations.

Tolerances: as in tests/latent/test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from reference import LATENT, assert_same_gradients, gradients, rescaled
from reference import MODELS as PLAIN
from supervised import embedded, layers_of, make_examples, make_method, make_reasoner, make_rows, training_loss
from torch import Tensor

from multicoco.models.checkpointing import checkpoint_activations
from multicoco.models.lora import add_lora

MODELS = PLAIN | {"gemma2": lambda: rescaled("gemma2")}
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 2e-5


def reference(method, model, decoder, head, projection, name: str, stage: int, filler: int | None) -> Tensor:
    """Decoder and head: those that read."""

    def said(head, hidden: Tensor) -> Tensor:
        cap = getattr(model.config, "final_logit_softcapping", None)
        return head(hidden) if cap is None else cap * torch.tanh(head(hidden) / cap)

    words: list[tuple[Tensor, int]] = []
    read: list[tuple[Tensor, int]] = []
    for i, (row, tokens) in enumerate(zip(make_rows(method, name, stage), make_examples(name), strict=True)):
        if i == filler:
            continue
        embeds, thoughts = embedded(model, row.input_ids, row.inputs), []
        for column in [c for c, t in enumerate(row.input_ids) if t == LATENT]:
            hidden = layers_of(model, embeds[:column])[-1][-1]
            embeds[column] = hidden if projection is None else projection(hidden)
            thoughts.append(embeds[column])
        logits = said(model.lm_head, layers_of(model, embeds)[-1])
        words += [(logits[c], label) for c, label in enumerate(row.labels[1:]) if label != -100]
        # two thoughts a step; the second step's, which are the last, stand for all steps from there on
        steps = tokens.steps[:1] if stage == 1 else [*tokens.steps[:1], [t for step in tokens.steps[1:] for t in step]]
        for k, step in enumerate(steps):
            if not step:
                continue
            of_step = thoughts[2 * k : 2 * k + 2] if method.own_keys.reads == "all" else thoughts[2 * k + 1 : 2 * k + 2]
            given = torch.cat([torch.stack(of_step), decoder.get_input_embeddings()(torch.tensor(step))])
            hidden = decoder(inputs_embeds=given[None], use_cache=False).last_hidden_state[0]
            read += [(said(head, hidden[len(of_step) - 1 + n]), token) for n, token in enumerate(step)]

    def cross_entropy(chosen: list[tuple[Tensor, int]]) -> Tensor:
        logits, labels = zip(*chosen, strict=True)
        return F.cross_entropy(torch.stack(logits), torch.tensor(labels))

    return cross_entropy(words) + method.own_keys.weight * cross_entropy(read)


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
    loss = reference(method, expected, decoder, head, own, name, stage, filler)
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
    loss = reference(method, expected, reader, own.get_output_embeddings(), None, name, 3, 1)
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
        ({}, {"decoder": "self", "decoder_layers": 2}, "sim_cot.decoder_layers is 2 but sim_cot.decoder is self"),
        ({}, {"decoder": "self", "freeze_decoder": True}, "sim_cot.freeze_decoder is true but sim_cot.decoder is self"),
        ({}, {"decoder": "adapters"}, "sim_cot.decoder is adapters but sim_cot.decoder_rank is null"),
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


def test_adapters_are_not_copied():
    with pytest.raises(ValueError, match=r"lora.rank is 4 but sim_cot.decoder is copy"):
        make_method("sim_cot", lora={"rank": 4})
    for keys in ({"decoder": "self"}, {"decoder": "adapters", "decoder_rank": 2}):
        assert make_method("sim_cot", lora={"rank": 4}, sim_cot=keys).own_keys.decoder == keys["decoder"]


def test_a_copy_cannot_have_more_layers_than_the_model():
    method = make_method("sim_cot", sim_cot={"decoder_layers": 4})
    with pytest.raises(ValueError, match="the first 4 layers are asked for, it has 3"):
        method.objective(MODELS["llama"]())
