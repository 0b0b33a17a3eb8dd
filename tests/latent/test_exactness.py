"""The check that compares the loss after thoughts with plain recomputing: what it takes, and what it finds."""

from functools import partial

import pytest
import torch
from latent.test_self_check import lively, of_kind, texts
from models.families.test_sighted import make_batch, make_rows
from reference import SIGHTED, coconut_logits, llava, qwen2

from multicoco.errors import UserError
from multicoco.latent import exactness
from multicoco.latent.exactness import Exactness, measure_exactness, require_exact
from multicoco.latent.reasoner import LatentReasoner


def measured(model, kernel, row) -> Exactness:
    return measure_exactness(model, kernel, row, trains=True)


def example(name):
    """Of one image, between words."""
    return make_batch(name, [make_rows(name)[1]], torch.float32, left=[1])


@pytest.mark.parametrize("name", SIGHTED)
def test_models_that_see_agree(name):
    found = measured(SIGHTED[name](), "auto", example(name))
    assert found.agrees and found.thoughts == 3 and found.kind == SIGHTED[name]().config.model_type
    assert found.passes == pytest.approx(found.recomputed, rel=1e-5)
    gradients = found.gradients
    assert gradients.compared == gradients.trained == len([*SIGHTED[name]().parameters()])
    assert gradients.difference < gradients.tolerance / 5


@pytest.mark.parametrize("kind", ["gpt2", "gemma", "qwen2_moe", "cohere"])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_texts_of_any_length_agree(kind, length):
    assert measured(of_kind(kind, logit_scale=1.0), "reference", texts(length)[0]).agrees


def test_a_text_longer_than_the_model_has_positions_is_cut():
    found = measured(of_kind("gpt2", max_position_embeddings=20), "auto", texts(30)[0])
    assert found.agrees and found.tokens == 20


def test_the_loss_is_that_of_a_reference_that_keeps_no_cache():
    model, [row] = lively(qwen2()).eval(), texts(20)
    found = measured(model, "auto", row)
    ids = row["input_ids"][0]
    latent = next(id for id in range(64) if id not in ids.tolist())
    with_thoughts = torch.cat([ids[:4], ids.new_tensor([63, 63]), ids[4:12], ids.new_tensor([63]), ids[12:]])[None]
    logits = coconut_logits(model, with_thoughts, torch.ones_like(with_thoughts))
    targets = with_thoughts.masked_fill(with_thoughts == 63, latent)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], targets[0, 1:])
    assert found.passes == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_leaves_the_model_as_it_was(dtype):
    model = llava().to(dtype).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    require_exact(model, "auto", example("llava"), trains=True)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    # on rank 0 alone: hooks that stay would come before DeepSpeed's there, and after them on other ranks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model(torch.tensor([[60] * 4 + [1]]), pixel_values=torch.zeros(1, 3, 56, 56).to(dtype))  # which still works
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == before[key].dtype and torch.equal(tensor, before[key])


def remembers(layer):
    """Keeps something of one call for the next."""
    own, kept = layer.mlp.forward, [torch.zeros(())]

    def forward(hidden):
        out = own(hidden) + 0.01 * kept[0]
        kept[0] = hidden.mean()
        return out

    layer.mlp.forward = forward


def knows_no_cache(layer):
    """Mixes the columns that it is given."""
    own = layer.mlp.forward
    layer.mlp.forward = lambda hidden: own(hidden + 0.01 * hidden.cumsum(1))


def counts_its_columns(layer):
    """Treats the first column of every call otherwise, as what makes a mask by itself might."""
    own = layer.mlp.forward
    layer.mlp.forward = lambda hidden: own(torch.cat([1.01 * hidden[:, :1], hidden[:, 1:]], dim=1))


def cuts_single_columns(layer):
    """What it is given alone, it learns nothing from."""
    own = layer.mlp.forward
    layer.mlp.forward = lambda hidden: own(hidden.detach() if hidden.shape[1] == 1 else hidden)


def keeps_its_weight(layer):
    """Of the first call, for single columns."""
    own, kept = layer.input_layernorm.forward, []

    def forward(hidden):
        kept.append(layer.input_layernorm.weight)
        return own(hidden) * (kept[0] if hidden.shape[1] > 1 else kept[0].detach())

    layer.input_layernorm.forward = forward


@pytest.mark.parametrize(
    ("tamper", "worst"), [(cuts_single_columns, ""), (keeps_its_weight, "layers.1.input_layernorm")]
)
@pytest.mark.parametrize("model", [llava, lambda: lively(qwen2())], ids=["llava", "qwen2"])
def test_a_right_loss_with_a_wrong_gradient_is_refused_by_the_worst_parameter(tamper, worst, model):
    model = model()
    tamper(model.get_decoder().layers[1])
    row = example("llava") if model.config.model_type == "llava" else texts(40)[0]
    found = measured(model, "auto", row)
    assert found.losses_agree and not found.agrees and worst in found.gradients.worst
    assert found.gradients.difference > 10 * found.gradients.tolerance
    assert measure_exactness(model, "auto", row, trains=False).agrees  # which learns nothing
    with pytest.raises(
        UserError, match=f"do not learn what .* the loss is right, .* gradient of {found.gradients.worst}"
    ):
        require_exact(model, "auto", row, trains=True)


def test_only_gradients_of_what_is_trained_are_compared():
    model = lively(qwen2())
    cuts_single_columns(model.get_decoder().layers[1])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.lm_head.weight.requires_grad_()  # in whose gradient no layer has a part
    found = measured(model, "auto", texts(40)[0])
    assert found.agrees and (found.gradients.compared, found.gradients.trained) == (1, 1)


def test_of_many_numbers_the_gradients_of_the_smallest_parameters_are_compared(monkeypatch):
    sizes = sorted(parameter.numel() for parameter in qwen2().parameters())
    monkeypatch.setattr(exactness, "MOST_GRADIENTS", sum(sizes[:10]) + 1)
    found = measured(lively(qwen2()), "auto", texts(20)[0])
    assert found.agrees and (found.gradients.compared, found.gradients.trained) == (10, len(sizes))
    monkeypatch.setattr(exactness, "MOST_GRADIENTS", 0)
    assert measured(lively(qwen2()), "auto", texts(20)[0]).gradients is None


def attends_by_itself(layer):
    layer.self_attn.forward = lambda hidden_states, **kwargs: (hidden_states.cumsum(1), None)


@pytest.mark.parametrize("tamper", [remembers, knows_no_cache, counts_its_columns, attends_by_itself])
@pytest.mark.parametrize("model", [llava, lambda: lively(qwen2())], ids=["llava", "qwen2"])
def test_a_layer_that_is_not_exact_is_refused_with_both_losses(tamper, model):
    model = model()
    tamper(model.get_decoder().layers[1])
    sees = model.config.model_type == "llava"
    row = example("llava") if sees else texts(40)[0]
    found = measured(model, "auto", row)
    assert not found.agrees and found.difference > 2 * found.tolerance.of_spread
    message = r"do not compute what .* loss is \d\.\d+ through the passes and \d\.\d+ by recomputing"
    with pytest.raises(UserError, match=message):
        require_exact(model, "auto", row, trains=True)


def test_what_only_thoughts_show_is_found(monkeypatch):
    otherwise = partial(LatentReasoner, thoughts=lambda hidden, k: 1.01 * hidden)
    monkeypatch.setattr("multicoco.latent.exactness.LatentReasoner", otherwise)
    assert not measured(llava(), "auto", example("llava")).agrees


def test_models_that_cannot_be_run_or_have_no_loss_get_one_message():
    with pytest.raises(UserError, match=r"cannot run this nemotron model \(.*choose another model"):
        measured(of_kind("nemotron"), "auto", texts(9)[0])
    with pytest.raises(UserError, match="do not compute what the bert model computes"):
        require_exact(of_kind("bert"), "auto", texts(9)[0], trains=True)
    model = qwen2()
    model.lm_head.weight.data[5, 5] = float("nan")
    with pytest.raises(UserError, match="qwen2 model's own logits are not finite"):
        measured(model, "auto", texts(9)[0])
