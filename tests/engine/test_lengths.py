import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.example import Example
from multicoco.engine.lengths import check_prompt_lengths, check_training_lengths
from multicoco.errors import UserError
from multicoco.methods import method_class

KEYS = {"name": "run", "model_id": "model", "train_path": "train.json", "mode": "coconut_train", "num_epochs": 3}
CONFIG = RunConfig(**KEYS, coconut={"enabled": True, "c_thought": 2, "max_latent_stage": 2})
METHOD = method_class("coconut")(CONFIG, LatentTokens(97, 98, 99))
SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=4)  # prompt, steps of 3 tokens


def encode(example: Example, asked: str):
    prompt, steps = example.choices
    return ExampleTokens([1] * prompt, [[2] * 3] * steps, [3, 4]), {}


def examples(sizes) -> list[Example]:
    return [Example(f"q{i}", "q", (), size, (), None, None) for i, size in enumerate(sizes)]


def refused(check) -> str | None:
    try:
        check()
    except UserError as error:
        return str(error)
    return None


@given(sizes=SIZES, limit=st.integers(1, 40))
def test_refused_is_what_some_stage_would_make_too_long(sizes, limit):
    rows = {
        f"q{i}": max(len(METHOD.train_row(encode(x, "")[0], stage, 0, x.id)[0]) for stage in range(4))
        for i, x in enumerate(examples(sizes))
    }
    message = refused(lambda: check_training_lengths(limit, examples(sizes), encode, METHOD, range(4)))
    assert (message is not None) >= (max(rows.values()) > limit)
    if message is not None:  # it may be cautious by the thoughts that an example with fewer steps has not
        assert max(rows.values()) + 4 > limit and "train_path: record 'q" in message


@pytest.mark.parametrize("limit", [9, 99])
def test_what_is_remembered_is_not_looked_for_again(tmp_path, limit):
    def check(encoder):
        return refused(
            lambda: check_training_lengths(limit, examples([(3, 1), (9, 4)]), encoder, METHOD, [0], tmp_path / "f.json")
        )

    first = check(encode)
    assert (first is None) == (limit == 99) and check(None) == first
    (tmp_path / "f.json").write_text("broken")
    assert check(encode) == first == check(None)


@given(sizes=SIZES, limit=st.integers(1, 40), new=st.integers(1, 10))
def test_an_answer_must_have_room_behind_the_longest_prompt(sizes, limit, new):
    longest = max(len(METHOD.prompt_row(encode(x, "")[0], 2)) for x in examples(sizes))
    message = refused(lambda: check_prompt_lengths(limit, examples(sizes), encode, [METHOD], [0, 1, 2], new))
    assert (message is not None) == (longest + new > limit)
    if message and longest < limit:
        assert f"lower generation.max_new_tokens to {limit - longest}" in message


def test_thoughts_that_are_added_at_evaluation_need_room_too():
    limit = 5 + 2 + 4 + 1  # prompt, markers, the 4 thoughts of stage 2, an answer
    check_prompt_lengths(limit, examples([(5, 4)]), encode, [METHOD], [2], 1)
    message = refused(lambda: check_prompt_lengths(limit, examples([(5, 4)]), encode, [METHOD], [2], 1, extended_to=5))
    assert message and "record 'q0' is 12 tokens long" in message
