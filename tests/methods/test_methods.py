"""What every method promises the engine, whatever it is: rows, passes and extents that fit each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.config import RunConfig
from multicoco.curriculum import IGNORE_INDEX, ExampleTokens, LatentTokens
from multicoco.latent.schedule import OnePass
from multicoco.methods import evaluated_methods, method_class, thinking_method
from multicoco.methods.method import Extent
from multicoco.registry import names

LATENT = LatentTokens(97, 98, 99)
KEYS = {"name": "run", "model_id": "model", "train_path": "train.json", "num_epochs": 9}
tokens = st.builds(
    ExampleTokens,
    st.lists(st.integers(0, 90), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=3), max_size=5),
    st.lists(st.integers(0, 90), min_size=1, max_size=3),
)
coconut_keys = st.fixed_dictionaries(
    {
        "enabled": st.just(True),
        "c_thought": st.integers(0, 3),
        "thoughts": st.sampled_from(["hidden", "detached", "pause", "noise", "borrowed"]),
        "max_latent_stage": st.integers(1, 4),
        "epochs_per_stage": st.integers(1, 3),
        "pad_latent_to_max": st.booleans(),
        "uniform_prob": st.sampled_from([0.0, 0.5]),
    }
)


DEMANDS = {  # where any other value is refused
    "c_mtp": {"thoughts": "hidden", "pad_latent_to_max": False},
    "sim_cot": {"thoughts": "hidden"},
    "codi": {"thoughts": "hidden", "uniform_prob": 0.0},
    "codi_sim_cot": {"thoughts": "hidden", "uniform_prob": 0.0},
}


def method(name: str, coconut: dict):
    coconut = coconut | DEMANDS.get(name, {})
    coconut = coconut | {"c_thought": max(1, coconut.get("c_thought", 1))} if name in DEMANDS else coconut
    section = {"coconut": coconut} if method_class(name).section == "coconut" else {}
    section |= {"c_mtp": {"words": 15}} if name == "c_mtp" else {}  # of five steps of three tokens, for one thought
    return method_class(name)(RunConfig(**KEYS, mode="train", method=name, **section), LATENT)


@pytest.mark.parametrize("name", names("methods"))
@given(example=tokens, coconut=coconut_keys, epoch=st.integers(0, 8))
def test_rows_stay_within_the_extent_and_the_passes_of_their_stage(name, example, coconut, epoch):
    if name in ("no_thoughts", "no_markers") or not coconut["c_thought"]:
        coconut = coconut | {"thoughts": "hidden"}
    trained = method(name, coconut)
    stage = trained.parts(epoch, steps_per_epoch=7)[0].stage
    ids, labels = trained.train_row(example, stage, epoch, "x")
    assert ids[: len(example.prompt)] == example.prompt and ids[-len(example.answer) :] == example.answer
    assert len(ids) == len(labels) <= sum(trained.extent(example, stage))
    n_latents = ids.count(LATENT.latent)
    prompt = trained.prompt_row(example, stage)
    assert prompt[: len(example.prompt)] == example.prompt
    if trained.has_thoughts and isinstance(trained.pass_schedule, OnePass):
        assert trained.passes(stage) == trained.prompt_passes(stage) == 1
    else:
        assert prompt.count(LATENT.latent) + 1 <= trained.prompt_passes(stage)
    if trained.passes(stage) > 1:
        assert n_latents + 1 <= trained.passes(stage) and n_latents <= trained.extent(example, stage).thoughts
    supervision = trained.supervision(example, stage, epoch, "x")
    assert supervision is None or len(supervision.stretches) in (0, n_latents)
    written = [token for token, label in zip(ids, labels, strict=True) if label != IGNORE_INDEX]
    assert [label for label in labels if label != IGNORE_INDEX] == written  # what carries a loss is the text itself
    assert LATENT.latent not in written and written[-len(example.answer) :] == example.answer
    assert trained.has_thoughts or n_latents == 0


@pytest.mark.parametrize("name", names("methods"))
@given(coconut=coconut_keys, steps_per_epoch=st.integers(1, 40))
def test_the_parts_of_an_epoch_are_all_of_its_steps_and_stages_never_go_back(name, coconut, steps_per_epoch):
    trained = method(name, coconut | {"thoughts": "hidden"})
    stages = []
    for epoch in range(9):
        parts = trained.parts(epoch, steps_per_epoch)
        assert [step for part in parts for step in range(part.first, part.end)] == list(range(steps_per_epoch))
        stages += [part.stage for part in parts]
    assert stages == sorted(stages)


def test_coconut_replaces_the_first_steps_of_its_stage():
    example = ExampleTokens([1, 2], [[3], [4], [5]], [6])
    trained = method("coconut", {"enabled": True, "c_thought": 2, "max_latent_stage": 2})
    assert trained.train_row(example, 1, 0, "x") == ([1, 2, 97, 98, 98, 99, 4, 5, 6], [IGNORE_INDEX] * 6 + [4, 5, 6])
    assert trained.train_row(example, 3, 0, "x")[0] == [1, 2, 97, 98, 98, 98, 98, 99, 6]
    assert trained.prompt_row(example, 1) == [1, 2, 97, 98, 98, 99]


def test_parallel_thoughts_take_as_many_passes_in_every_stage_that_has_so_many_thoughts():
    keys = KEYS | {"mode": "coconut_train", "coconut": {"enabled": True, "c_thought": 2, "max_latent_stage": 3}}
    keys["coconut"] |= {"jacobi_iterations": 3}
    trained = method_class("coconut")(RunConfig(**keys), LATENT)
    assert [trained.passes(stage) for stage in range(5)] == [1, 3, 4, 4, 4]
    assert trained.extent(ExampleTokens([1, 2], [[3], [4]], [6]), 2).thoughts == 4
    asked = method_class("coconut")(RunConfig(**keys, eval_config={"eval_latent_tokens": 9}), LATENT)
    assert asked.prompt_passes(3) == 4


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
    named = {"cot": True, "methods": ["icot", "sim_cot", "cot"]}
    config = RunConfig(**keys, coconut={"enabled": True}, eval_config=named)
    assert evaluated_methods(config) == ["cot", "icot", "sim_cot"]
    assert (config.trained_method, thinking_method(config)) == ("cot", method_class("sim_cot"))
    config = RunConfig(**KEYS, mode="cot_train")
    assert evaluated_methods(config) == ["cot"] and thinking_method(config) is None


@pytest.mark.parametrize(
    ("trained", "named", "asked"),
    [
        ("no_markers", ["coconut", "cot"], ["no_markers", "cot"]),
        ("codi_sim_cot", ["coconut", "codi", "sim_cot", "codi_sim_cot"], ["codi_sim_cot"]),
        ("coconut", ["no_thoughts"], ["no_thoughts"]),  # that is no Coconut
        ("icot", ["icot", "cot"], ["icot", "cot"]),
    ],
)
def test_what_a_method_is_a_kind_of_stands_for_it(trained, named, asked):
    keys = {"coconut": {"enabled": True}} if method_class(trained).section == "coconut" else {}
    config = RunConfig(**KEYS, **keys, mode="train", method=trained, val_path="v", eval_config={"methods": named})
    assert evaluated_methods(config) == asked


@pytest.mark.parametrize("thoughts", ["detached", "pause", "noise", "borrowed"])
def test_a_control_changes_the_content_of_thoughts_and_no_row(thoughts):
    example = ExampleTokens([1, 2], [[3], [4], [5]], [6])
    keys = {"enabled": True, "c_thought": 2, "max_latent_stage": 2, "uniform_prob": 0.5}
    plain, control = method("coconut", keys), method("coconut", keys | {"thoughts": thoughts})
    for epoch in range(9):
        assert control.parts(epoch, 7) == plain.parts(epoch, 7)
        [(stage, _, _)] = plain.parts(epoch, 7)
        assert control.train_row(example, stage, epoch, "x") == plain.train_row(example, stage, epoch, "x")
        assert control.prompt_row(example, stage) == plain.prompt_row(example, stage)


@pytest.mark.parametrize(("name", "markers"), [("no_thoughts", [97, 99]), ("no_markers", [])])
def test_steps_go_and_nothing_takes_their_place(name, markers):
    example = ExampleTokens([1, 2], [[3], [4], [5]], [6])
    control = method(name, {"enabled": True, "c_thought": 2, "max_latent_stage": 2})
    assert [control.parts(epoch, 7) for epoch in range(9)] == [
        method("coconut", {"enabled": True, "max_latent_stage": 2}).parts(epoch, 7) for epoch in range(9)
    ]
    written = {0: [3, 4, 5, 6], 1: [4, 5, 6], 2: [5, 6], 3: [6]}
    for stage, ids in written.items():
        context = [1, 2, *markers]
        expected = (context + ids, [IGNORE_INDEX] * len(context) + ids)
        assert control.train_row(example, stage, 0, "x") == expected
        assert control.prompt_row(example, stage) == context
        assert control.extent(example, stage) == Extent(2 + len(markers) // 2, 0, len(ids) + len(markers) // 2)


def test_no_thoughts_is_coconut_with_a_c_thought_of_0():
    example, keys = ExampleTokens([1, 2], [[3], [4], [5]], [6]), {"enabled": True, "max_latent_stage": 2}
    control, zero = method("no_thoughts", keys), method("coconut", keys | {"c_thought": 0})
    for stage in range(4):
        assert control.train_row(example, stage, 0, "x") == zero.train_row(example, stage, 0, "x")


def test_without_a_curriculum_no_step_is_ever_written():
    example = ExampleTokens([1], [[3], [4], [5]], [6])
    control = method("coconut", {"enabled": True, "max_latent_stage": 2, "first_stage": 3})
    for epoch in range(9):
        [(stage, _, _)] = control.parts(epoch, 7)
        assert control.train_row(example, stage, epoch, "x")[0] == [1, 97, 98, 98, 99, 6]


def test_a_control_is_evaluated_as_it_was_trained():
    evaluated = {"vanilla": True, "coconut": True}
    keys = KEYS | {"mode": "train", "val_path": "val.json", "eval_config": evaluated, "coconut": {"enabled": True}}
    for name, expected in (("no_thoughts", ["no_thoughts", "vanilla"]), ("coconut", ["coconut", "vanilla"])):
        assert evaluated_methods(RunConfig(**keys, method=name)) == expected
