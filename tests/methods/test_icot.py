"""Stepwise internalisation against the schedule of its paper."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicoco.config import RunConfig
from multicoco.curriculum import IGNORE_INDEX, ExampleTokens
from multicoco.methods import method_class

KEYS = {"name": "run", "model_id": "model", "train_path": "train.json", "mode": "train", "method": "icot"}
EXAMPLE = ExampleTokens([1, 2], [[3, 4], [5, 6, 7]], [8, 9])


def icot(num_epochs: int = 10, **keys):
    return method_class("icot")(RunConfig(**KEYS, num_epochs=num_epochs, icot=keys))


def by_definition(n_steps: int, steps_per_token: int, beyond: float) -> tuple[list[float], list[int]]:
    """Tokens to be removed in every step, and the steps that begin with a new optimizer, from the paper's words
    (section 3): one token more after so many steps, all of them from a number on, a new optimizer when tokens go."""
    counts = [step // steps_per_token for step in range(n_steps)]
    removed = [math.inf if count >= beyond else count for count in counts]
    return removed, [step for step in range(1, n_steps) if removed[step] != removed[step - 1]]


@given(
    epochs=st.integers(1, 9),
    steps_per_epoch=st.integers(1, 50),
    per_epoch=st.sampled_from([0.5, 1, 3, 8]),
    beyond=st.none() | st.integers(1, 20),
)
def test_the_schedule_is_the_published_one(epochs, steps_per_epoch, per_epoch, beyond):
    if steps_per_epoch <= per_epoch / 2:
        return  # then a token goes in every step
    trained = icot(1000, remove_per_epoch=per_epoch, remove_all_beyond=beyond, smoothing=None)
    example = ExampleTokens([1], [[2] * 500], [3])
    left, entered, stage = [], [], 0
    for epoch in range(epochs):
        for part in trained.parts(epoch, steps_per_epoch):
            if part.stage != stage:
                entered.append(epoch * steps_per_epoch + part.first)
                stage = part.stage
            n_left = trained.train_row(example, part.stage, epoch, "x")[0].count(2)
            left += [n_left] * (part.end - part.first)
    steps_per_token = round(steps_per_epoch / per_epoch)
    removed, resets = by_definition(epochs * steps_per_epoch, steps_per_token, beyond or math.inf)
    assert left == [500 - min(n, 500) for n in removed]
    assert entered == resets


def test_the_papers_setting_for_gsm8k():
    """8 tokens an epoch, all beyond 39: 39 new optimizers within 5 epochs."""
    trained = icot(80, remove_all_beyond=39)
    stages = [part.stage for epoch in range(80) for part in trained.parts(epoch, 800)]
    assert sorted(set(stages)) == [*range(40)]
    assert [part.stage for part in trained.parts(4, 800)] == [*range(32, 40)]
    assert trained.parts(5, 800) == [(39, 0, 800)]


def test_what_is_removed_stands_first():
    trained = icot(smoothing=None, remove_all_beyond=4)
    ids = {stage: trained.train_row(EXAMPLE, stage, 0, "x") for stage in range(5)}
    assert ids[0] == ([1, 2, 3, 4, 5, 6, 7, 8, 9], [IGNORE_INDEX] * 2 + [3, 4, 5, 6, 7, 8, 9])
    assert ids[3] == ([1, 2, 6, 7, 8, 9], [IGNORE_INDEX] * 2 + [6, 7, 8, 9])
    assert ids[4] == ([1, 2, 8, 9], [IGNORE_INDEX] * 2 + [8, 9])
    assert trained.prompt_row(EXAMPLE, 3) == [1, 2]
    assert [sum(trained.extent(EXAMPLE, stage)) for stage in range(5)] == [len(ids[stage][0]) for stage in range(5)]


def test_smoothing_removes_more_of_some_examples_by_the_published_distribution():
    trained, long = icot(smoothing=0.5), ExampleTokens([1], [[2] * 300], [3])
    rows = [trained.train_row(long, 7, epoch, f"x{i}")[0] for i in range(2000) for epoch in range(5)]
    extra = Counter(300 - 7 - row.count(2) for row in rows)
    for k in range(6):
        expected = (1 - math.exp(-0.5)) * math.exp(-0.5 * k)
        assert extra[k] / len(rows) == pytest.approx(expected, abs=4 * math.sqrt(expected / len(rows)))
    again = trained.train_row(long, 7, 3, "x5"), trained.train_row(long, 7, 3, "x5")
    assert again[0] == again[1]


def test_a_run_that_would_end_before_all_is_removed_is_refused():
    with pytest.raises(ValueError, match=r"num_epochs is 4 and icot\.remove_per_epoch 8"):
        icot(4, remove_all_beyond=39)
    icot(5, remove_all_beyond=39)
