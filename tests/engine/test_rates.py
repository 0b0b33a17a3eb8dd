"""Which parameter has which learning rate; that training is AdamW's with such groups: tests/engine/test_zero.py."""

from types import SimpleNamespace

import pytest
import torch
from reference import LATENT, SIGHTED, internvl, qwen2

from multicoco.config import RunConfig
from multicoco.engine.optimizer import start_schedule
from multicoco.engine.rates import learning_rates, parameter_groups
from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.thoughts import Projected, Projection, hidden_state
from multicoco.models.freezing import freeze
from multicoco.models.lora import add_lora, add_token_rows

RATES = {"projector": 3e-3, "vision_tower": 1e-3, "language_model": 2e-3}


def grouped(model, rates, **options) -> dict[str, list[str]]:
    """The names of the parameters that have each part's rate."""
    reasoner = LatentReasoner(model, LATENT, **options)
    name_of = {id(p): name for name, p in reasoner.named_parameters()}
    groups = parameter_groups(reasoner, rates)
    names = {group.get("part", "all"): [name_of[id(p)] for p in group["params"]] for group in groups}
    every = [name for own in names.values() for name in own]
    assert len(every) == len(set(every)) == sum(p.requires_grad for p in reasoner.parameters())  # each once
    return names


@pytest.mark.parametrize("name", SIGHTED)
def test_each_part_of_a_model_has_its_own_group_and_the_language_model_the_first(name):
    model = SIGHTED[name]()
    names = grouped(model, RATES)
    assert next(iter(names)) == "language_model" and names.keys() == RATES.keys()
    seen = [path for part in ("vision_tower", "projector") for path in names[part]]
    assert seen and not any("language_model" in path or "text_model" in path for path in seen)
    assert all("embed_tokens" in path or "layers" in path or "norm" in path for path in names["language_model"])


def test_one_rate_is_one_group():
    assert [*grouped(internvl(), 1e-3)] == ["all"]


def test_new_tokens_are_their_rows_alone_and_else_the_language_models():
    model = internvl(tied=False)
    add_token_rows(model, [LATENT])
    rows = grouped(model, RATES | {"new_tokens": 1.0})["new_tokens"]
    assert len(rows) == 2 and all("trainable_tokens_delta" in path for path in rows)
    adapted = internvl()
    freeze(adapted, vision_tower=True)
    add_lora(adapted, rank=2, alpha=4, new_tokens=[LATENT])
    rates = {"projector": 1.0, "language_model": 2.0}
    assert len(grouped(adapted, rates | {"new_tokens": 3.0})["new_tokens"]) == 1
    assert any("trainable_tokens_delta" in path for path in grouped(adapted, rates)["language_model"])


def test_what_no_part_has_goes_with_the_language_model():
    model = qwen2()
    projected = Projected(hidden_state, Projection(model, "linear"))
    names = grouped(model, {"language_model": 1e-3}, thoughts=projected)["language_model"]
    assert "thought_source.projection.layers.0.weight" in names
    model.requires_grad_(False)
    assert len(grouped(model, {"language_model": 1e-3}, thoughts=projected)["language_model"]) == 4


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"language_model": 1e-3}, ["lr has no projector, which trains"]),
        (
            {"projector": 1e-3, "vision_tower": 1e-3},
            ["lr.vision_tower is set but internvl", "lr has no language_model"],
        ),
        (RATES | {"new_tokens": 1e-3}, ["lr.new_tokens is set but internvl has no new_tokens that trains"]),
    ],
)
def test_a_part_without_a_rate_and_a_rate_without_a_part_are_refused(rates, expected):
    model = internvl()
    freeze(model, vision_tower=True)
    with pytest.raises(UserError) as refused:
        parameter_groups(LatentReasoner(model, LATENT), rates)
    assert all(part in str(refused.value) for part in expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_warm_up_and_decay_keep_the_ratios(schedule):
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [w], "part": part} for w, part in zip(weights, ("language_model", "projector"), strict=True)]
    engine = SimpleNamespace(optimizer=torch.optim.AdamW(groups, lr=0.0))
    rates = {"projector": 3e-3, "language_model": 1e-3}
    keys = {"mode": "cot_train", "name": "run", "model_id": "m", "train_path": "t.json"}
    config = RunConfig(**keys, lr=rates, lr_schedule=schedule, warmup_steps=3)
    start_schedule(engine, config, rates, total_steps=10)
    logged = []
    for _ in range(10):
        logged.append(learning_rates(engine, rates))
        engine.optimizer.step()
        engine.lr_scheduler.step()
    assert all(each["train/lr/projector"] == pytest.approx(3 * each["train/lr/language_model"]) for each in logged)
    assert all(each["train/lr"] == each["train/lr/language_model"] for each in logged)
    assert (
        max(each["train/lr"] for each in logged) == 1e-3 and logged[0]["train/lr"] == 1e-3 / 4 > logged[-1]["train/lr"]
    )
    start_schedule(engine, config, rates, total_steps=10)  # as at a stage transition
    assert learning_rates(engine, rates) == logged[0]
