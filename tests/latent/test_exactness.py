"""The check that compares the loss after thoughts with plain recomputing: what it takes, and what it finds."""

from functools import partial

import pytest
import torch
from latent.test_self_check import lively, of_kind, texts
from models.families.test_sighted import make_batch, make_rows
from reference import SIGHTED, coconut_logits, llava, qwen2

from multicoco.errors import UserError
from multicoco.latent.exactness import measure_exactness, require_exact
from multicoco.latent.reasoner import LatentReasoner


def example(name):
    """Of one image, between words."""
    return make_batch(name, [make_rows(name)[1]], torch.float32, left=[1])


@pytest.mark.parametrize("name", SIGHTED)
def test_models_that_see_agree(name):
    found = measure_exactness(SIGHTED[name](), "auto", example(name))
    assert found.agrees and found.thoughts == 3 and found.kind == SIGHTED[name]().config.model_type
    assert found.passes == pytest.approx(found.recomputed, rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gemma", "qwen2_moe", "cohere"])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_texts_of_any_length_agree(kind, length):
    assert measure_exactness(of_kind(kind, logit_scale=1.0), "reference", texts(length)[0]).agrees


def test_a_text_longer_than_the_model_has_positions_is_cut():
    found = measure_exactness(of_kind("gpt2", max_position_embeddings=20), "auto", texts(30)[0])
    assert found.agrees and found.tokens == 20


def test_the_loss_is_that_of_a_reference_that_keeps_no_cache():
    model, [row] = lively(qwen2()).eval(), texts(20)
    found = measure_exactness(model, "auto", row)
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
    require_exact(model, "auto", example("llava"))
    assert model.training
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


def attends_by_itself(layer):
    layer.self_attn.forward = lambda hidden_states, **kwargs: (hidden_states.cumsum(1), None)


@pytest.mark.parametrize("tamper", [remembers, knows_no_cache, counts_its_columns, attends_by_itself])
@pytest.mark.parametrize("model", [llava, lambda: lively(qwen2())], ids=["llava", "qwen2"])
def test_a_layer_that_is_not_exact_is_refused_with_both_losses(tamper, model):
    model = model()
    tamper(model.get_decoder().layers[1])
    sees = model.config.model_type == "llava"
    row = example("llava") if sees else texts(40)[0]
    found = measure_exactness(model, "auto", row)
    assert not found.agrees and found.difference > 2 * found.tolerance.of_spread
    message = r"do not compute what .* loss is \d\.\d+ through the passes and \d\.\d+ by recomputing"
    with pytest.raises(UserError, match=message):
        require_exact(model, "auto", row)


def test_what_only_thoughts_show_is_found(monkeypatch):
    otherwise = partial(LatentReasoner, thoughts=lambda hidden, k: 1.01 * hidden)
    monkeypatch.setattr("multicoco.latent.exactness.LatentReasoner", otherwise)
    assert not measure_exactness(llava(), "auto", example("llava")).agrees


def test_models_that_cannot_be_run_or_have_no_loss_get_one_message():
    with pytest.raises(UserError, match=r"cannot run this nemotron model \(.*choose another model"):
        measure_exactness(of_kind("nemotron"), "auto", texts(9)[0])
    with pytest.raises(UserError, match="do not compute what the bert model computes"):
        require_exact(of_kind("bert"), "auto", texts(9)[0])
    model = qwen2()
    model.lm_head.weight.data[5, 5] = float("nan")
    with pytest.raises(UserError, match="qwen2 model's own logits are not finite"):
        measure_exactness(model, "auto", texts(9)[0])
