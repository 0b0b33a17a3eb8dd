"""What every method promises the engine, whatever it is: rows, passes and extents that fit each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.config import RunConfig
from multicoco.curriculum import IGNORE_INDEX, ExampleTokens, LatentTokens
from multicoco.methods import evaluated_methods, method_class, thinking_method
from multicoco.registry import names

LATENT = LatentTokens(97, 98, 99)
KEYS = {"name": "run", "model_id": "model", "train_path": "train.json", "num_epochs": 9}
MODES = {"vanilla": "vanilla_train", "cot": "cot_train", "coconut": "coconut_train"}

tokens = st.builds(
    ExampleTokens,
    st.lists(st.integers(0, 90), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=3), max_size=5),
    st.lists(st.integers(0, 90), min_size=1, max_size=3),
)
coconut_keys = st.fixed_dictionaries(
    {
        "enabled": st.just(True),
        "c_thought": st.integers(1, 3),
        "max_latent_stage": st.integers(1, 4),
        "epochs_per_stage": st.integers(1, 3),
        "pad_latent_to_max": st.booleans(),
        "uniform_prob": st.sampled_from([0.0, 0.5]),
    }
)


def method(name: str, coconut: dict):
    section = {"coconut": coconut} if name == "coconut" else {}
    return method_class(name)(RunConfig(**KEYS, mode=MODES[name], **section), LATENT)


@pytest.mark.parametrize("name", names("methods"))
@given(example=tokens, coconut=coconut_keys, epoch=st.integers(0, 8))
def test_rows_stay_within_the_extent_and_the_passes_of_their_stage(name, example, coconut, epoch):
    trained = method(name, coconut)
    stage = trained.schedule.stage(epoch)
    ids, labels = trained.train_row(example, stage, epoch, "x")
    assert ids[: len(example.prompt)] == example.prompt and ids[-len(example.answer) :] == example.answer
    assert len(ids) == len(labels) <= sum(trained.extent(example, stage))
    n_latents = ids.count(LATENT.latent)
    assert n_latents + 1 <= trained.passes(stage) and n_latents <= trained.extent(example, stage).thoughts
    written = [token for token, label in zip(ids, labels, strict=True) if label != IGNORE_INDEX]
    assert [label for label in labels if label != IGNORE_INDEX] == written  # what carries a loss is the text itself
    assert LATENT.latent not in written and written[-len(example.answer) :] == example.answer
    prompt = trained.prompt_row(example, stage)
    assert prompt[: len(example.prompt)] == example.prompt
    assert prompt.count(LATENT.latent) + 1 <= trained.prompt_passes(stage)
    assert trained.has_thoughts or n_latents == 0


def test_coconut_replaces_the_first_steps_of_its_stage():
    example = ExampleTokens([1, 2], [[3], [4], [5]], [6])
    trained = method("coconut", {"enabled": True, "c_thought": 2, "max_latent_stage": 2})
    assert trained.train_row(example, 1, 0, "x") == ([1, 2, 97, 98, 98, 99, 4, 5, 6], [IGNORE_INDEX] * 6 + [4, 5, 6])
    assert trained.train_row(example, 3, 0, "x")[0] == [1, 2, 97, 98, 98, 98, 98, 99, 6]
    assert trained.prompt_row(example, 1) == [1, 2, 97, 98, 98, 99]


def test_a_number_of_thoughts_can_be_asked_for():
    keys = KEYS | {"mode": "coconut_train", "coconut": {"enabled": True, "max_latent_stage": 3}}
    trained = method_class("coconut")(RunConfig(**keys, eval_config={"eval_latent_tokens": 1}), LATENT)
    assert trained.prompt_row(ExampleTokens([1]), 3) == [1, 97, 98, 99] and trained.prompt_passes(3) == 2


def test_written_reasoning_is_all_written():
    example = ExampleTokens([1, 2], [[3], [4], [5]], [6])
    ids, labels = method("cot", {}).train_row(example, 0, 0, "x")
    assert (ids, labels) == ([1, 2, 3, 4, 5, 6], [IGNORE_INDEX] * 2 + [3, 4, 5, 6])


def test_a_stage_may_have_a_learning_rate_of_its_own():
    keys = KEYS | {"mode": "coconut_train", "lr": 1e-3}
    trained = method_class("coconut")(RunConfig(**keys, coconut={"enabled": True, "stage_lr": [0.1, 0.2]}))
    assert [trained.learning_rate(stage) for stage in (0, 1, 2)] == [0.1, 0.2, 0.2]
    assert method("cot", {}).learning_rate(0) == method("cot", {}).config.lr


def test_which_methods_a_run_uses():
    keys = {"name": "run", "model_id": "model", "mode": "eval_only", "val_path": "val.json"}
    config = RunConfig(**keys, coconut={"enabled": True}, eval_config={"vanilla": True, "coconut": True})
    assert evaluated_methods(config) == ["coconut", "vanilla"]
    assert thinking_method(config) is method_class("coconut")
    config = RunConfig(**KEYS, mode="cot_train")
    assert evaluated_methods(config) == ["cot"] and thinking_method(config) is None
