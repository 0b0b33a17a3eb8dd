from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise

from hypothesis import given
from hypothesis import strategies as st

from multicoco.curriculum import IGNORE_INDEX, ExampleTokens, LatentTokens, StageSchedule, layout, stretches

LATENT = LatentTokens(start=900, latent=901, end=902)

schedules = st.builds(
    StageSchedule,
    c_thought=st.integers(1, 3),
    max_latent_stage=st.integers(0, 6),
    epochs_per_stage=st.integers(1, 4) | st.lists(st.integers(1, 4), min_size=1, max_size=4),
    pad_latent_to_max=st.booleans(),
    uniform_prob=st.sampled_from([0.0, 0.3, 1.0]),
    first_stage=st.integers(0, 2),
    seed=st.integers(0, 9),
)
n_steps_range = st.integers(0, 9)
stages = st.integers(0, 7)


@given(schedule=schedules, stage=stages, n_steps=n_steps_range)
def test_each_step_is_stood_for_by_c_thought_thoughts_in_its_order(schedule, stage, n_steps):
    _, latents = schedule.train_counts(stage, n_steps)
    steps = [schedule.step_of(thought) for thought in range(latents)]
    assert steps == sorted(steps)
    assert Counter(steps) == {step: schedule.c_thought for step in range(latents // schedule.c_thought)}


@given(schedule=schedules, stage=stages, n_steps=n_steps_range)
def test_counts_of_a_stage(schedule, stage, n_steps):
    replaced, latents = schedule.train_counts(stage, n_steps)
    assert latents <= schedule.max_latents(stage) <= schedule.max_latent_stage * schedule.c_thought
    assert latents % schedule.c_thought == 0
    if stage <= schedule.max_latent_stage:
        assert replaced == min(stage, n_steps)
        assert latents == stage * schedule.c_thought
    else:
        assert replaced == n_steps  # past the last latent stage nothing stays written
        padded = schedule.max_latent_stage * schedule.c_thought
        assert latents == (padded if schedule.pad_latent_to_max else min(padded, n_steps * schedule.c_thought))


@given(schedule=schedules, stage=stages, n_steps=n_steps_range)
def test_latents_at_evaluation_are_those_of_training_where_the_steps_suffice(schedule, stage, n_steps):
    latents = schedule.eval_latents(stage, n_steps)
    assert latents <= schedule.max_latents(stage)
    if schedule.pad_latent_to_max or n_steps >= stage:
        assert latents == schedule.train_counts(min(stage, schedule.max_latent_stage), n_steps)[1]


@given(schedule=schedules)
def test_stages_follow_each_other_for_their_epochs(schedule):
    stages = [schedule.stage(epoch) for epoch in range(60)]
    assert stages[0] == min(schedule.first_stage, schedule.max_latent_stage + 1)
    assert all(b - a in (0, 1) for a, b in pairwise(stages))
    assert stages[-1] == schedule.max_latent_stage + 1  # further on nothing changes any more
    lengths = schedule.epochs_per_stage
    for stage, count in Counter(stages).items():
        if stage <= schedule.max_latent_stage:
            index = stage - schedule.first_stage
            assert count == (lengths if isinstance(lengths, int) else lengths[min(index, len(lengths) - 1)])


@given(schedule=schedules, n_epochs=st.integers(1, 12), ended=st.sets(st.integers(1, 12)))
def test_a_stage_that_ends_early_leaves_its_epochs_to_the_others(schedule, n_epochs, ended):
    stages = [schedule.stage(epoch) for epoch in range(n_epochs)]
    assert schedule.reachable(n_epochs) == set(stages)
    schedule = replace(schedule, ends_early=True, ended_early=tuple(ended))
    early = [schedule.stage(epoch) for epoch in range(n_epochs)]
    assert set(early) <= schedule.reachable(n_epochs) and schedule.reachable(n_epochs) >= set(stages)
    assert all(b - a in (0, 1) for a, b in pairwise(early)) and early[0] == stages[0]
    for finished in range(1, n_epochs):
        is_last = early[finished - 1] == schedule.max_latent_stage + 1
        assert is_last or finished not in ended or early[finished] == early[finished - 1] + 1
    run, longest = 0, schedule.epochs_per_stage if isinstance(schedule.epochs_per_stage, int) else 4
    for before, stage in pairwise([None, *early]):
        run = run + 1 if stage == before else 1
        assert run <= longest or stage == schedule.max_latent_stage + 1


@given(
    schedule=schedules,
    stage=stages,
    epoch=st.integers(0, 50),
    n_steps=n_steps_range,
    example=st.text(max_size=5),
)
def test_mixing_depends_on_seed_epoch_and_example_alone(schedule, stage, epoch, n_steps, example):
    drawn = schedule.example_stage(stage, epoch, example, n_steps)
    assert drawn == schedule.example_stage(stage, epoch, example, n_steps)
    assert drawn == stage or 0 <= drawn <= n_steps
    if schedule.uniform_prob == 0:
        assert drawn == stage
    assert schedule.train_counts(drawn, n_steps)[1] <= schedule.max_latents(stage)


def test_mixing_happens_as_often_as_asked_and_uniformly():
    schedule = StageSchedule(max_latent_stage=3, uniform_prob=0.4)
    drawn = Counter(schedule.example_stage(9, 0, str(i), n_steps=3) for i in range(20_000))
    assert abs(drawn.pop(9) / 20_000 - 0.6) < 0.02  # 6 standard deviations
    assert set(drawn) == {0, 1, 2, 3}
    assert all(abs(count / 20_000 - 0.1) < 0.013 for count in drawn.values())


def test_mixing_changes_with_epoch_and_seed():
    def draws(seed, epoch):
        schedule = StageSchedule(max_latent_stage=3, uniform_prob=1.0, seed=seed)
        return [schedule.example_stage(1, epoch, str(i), n_steps=3) for i in range(50)]

    assert len({tuple(draws(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3


ids = st.lists(st.integers(0, 800), min_size=1, max_size=5)


@given(
    prompt=ids,
    steps=st.lists(ids, max_size=5),
    answer=ids,
    n_replaced=st.integers(0, 7),
    n_latents=st.none() | st.integers(0, 8),
)
def test_layout_keeps_order_and_labels_what_is_written(prompt, steps, answer, n_replaced, n_latents):
    block = () if n_latents is None else LATENT.block(n_latents)
    input_ids, labels = layout(ExampleTokens(prompt, steps, answer), n_replaced, block)
    written = [token for step in steps[n_replaced:] for token in step] + answer
    assert input_ids == prompt + list(block) + written
    assert labels == [IGNORE_INDEX] * (len(prompt) + len(block)) + written
    assert input_ids.count(LATENT.latent) == (n_latents or 0)


@given(
    steps=st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=7), max_size=5),
    n_latent_steps=st.integers(0, 5),
    c_thought=st.integers(1, 4),
)
def test_thoughts_share_the_tokens_that_they_stand_for(steps, n_latent_steps, c_thought):
    shared = stretches(steps, n_latent_steps, c_thought)
    assert len(shared) == n_latent_steps * c_thought
    for j in range(n_latent_steps):
        runs = shared[j * c_thought : (j + 1) * c_thought]
        is_last = j == n_latent_steps - 1
        tokens = [*chain.from_iterable(steps[j:] if is_last else steps[j : j + 1])]
        if len(tokens) >= c_thought:
            assert [*chain.from_iterable(runs)] == tokens
            assert max(map(len, runs)) - min(map(len, runs)) <= 1
        else:
            assert [len(run) for run in runs] == [bool(tokens)] * c_thought
            assert {token for run in runs for token in run} == set(tokens)
