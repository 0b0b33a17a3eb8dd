"""The rule, on made-up results of every outcome."""

from dataclasses import replace

import numpy as np
import pytest

from multicoco.study.verdict import Evidence, Outcome, Relation, format_verdict, judge

N = 1000


def arm(accuracy: float, *, seeds: int = 3, spread: float = 0.0, n: int = N) -> dict:
    """Answers that are right to some accuracy, at the questions that are easy for everybody, and a little luck."""
    hardness = np.random.default_rng(0).random(n)
    answers = {}
    for seed in range(seeds):
        own = accuracy + spread * (seed - (seeds - 1) / 2)
        luck = np.random.default_rng([seed, int(1000 * accuracy)]).normal(scale=0.01, size=n)
        answers[seed] = hardness + luck < own
    return answers


def evidence(**changes) -> Evidence:
    """Of thoughts that carry the reasoning, but for some accuracies; None leaves one out."""
    accuracies = {
        **{"hidden": 0.9, "cot": 0.7, "direct": 0.4, "no_thoughts": 0.5, "pause": 0.6, "borrowed": 0.55},
        **{"mean": 0.5, "noise": 0.4, "transplant": 0.5, "other_input": 0.3},
        **{"far_hidden": 0.7, "far_pause": 0.6},
        **changes,
    }
    answers = {
        name: arm(value) if isinstance(value, float) else value
        for name, value in accuracies.items()
        if value is not None
    }
    interventions = {
        name: answers.pop(name) for name in ("mean", "noise", "transplant", "other_input") if name in answers
    }
    far = {name.removeprefix("far_"): answers.pop(name) for name in ("far_hidden", "far_pause") if name in answers}
    return Evidence(answers, interventions, {"longer": far} if far else {})


def outcome(verdict, what: str) -> Outcome:
    [found] = [condition.outcome for condition in verdict.conditions if what in condition.says]
    return found


def test_all_conditions_together_are_the_finding():
    verdict = judge(evidence())
    assert verdict.finding and all(condition.outcome is Outcome.HELD for condition in verdict.conditions)
    assert len(verdict.conditions) == 9  # three controls, four interventions, one set out of distribution, the seeds
    assert verdict.readings == [
        verdict.readings[0],
        "The thoughts carry the reasoning: all 9 conditions held.",
    ]
    assert verdict.readings[0].startswith("Hidden thoughts are better than written reasoning (cot)")


@pytest.mark.parametrize(
    "missing", ["no_thoughts", "pause", "borrowed", "mean", "noise", "transplant", "other_input", "far_pause"]
)
def test_what_was_not_measured_prevents_it(missing):
    verdict = judge(evidence(**{missing: None}))
    assert not verdict.finding
    assert outcome(verdict, "longer" if missing == "far_pause" else f"({missing})") is Outcome.NOT_MEASURED
    assert "1 not measured" in verdict.readings[1]


@pytest.mark.parametrize("name", ["no_thoughts", "pause", "borrowed", "mean", "noise", "transplant", "other_input"])
@pytest.mark.parametrize("accuracy", [0.9, 0.95])
def test_one_that_ties_or_is_better_fails_it(name, accuracy):
    verdict = judge(evidence(**{name: accuracy}))
    assert not verdict.finding and outcome(verdict, f"({name})") is Outcome.FAILED
    assert sum(condition.outcome is Outcome.HELD for condition in verdict.conditions) == 8


def test_an_interval_that_decides_nothing_is_undecided():
    few = {name: arm(value, n=30) for name, value in {"hidden": 0.7, "pause": 0.65}.items()}
    verdict = judge(Evidence(few))
    assert outcome(verdict, "(pause)") is Outcome.UNDECIDED
    assert len(verdict.readings) == 2  # no sentence about positions


def test_a_seed_that_says_the_opposite_leaves_it_undecided():
    pause = arm(0.7)
    pause[1] = arm(0.92)[1]
    verdict = judge(evidence(pause=pause))
    assert outcome(verdict, "(pause)") is Outcome.UNDECIDED and not verdict.finding


def test_a_difference_below_the_margin_is_a_tie_however_sure():
    close = {"hidden": arm(0.9, n=20_000), "pause": arm(0.89, n=20_000)}
    verdict = judge(Evidence(close))
    [pause] = [condition for condition in verdict.conditions if "(pause)" in condition.says]
    assert pause.measured.p_holm < 1e-6 and pause.measured.paired.interval[0] > 0
    assert pause.measured.relation is Relation.TIED and pause.outcome is Outcome.FAILED
    assert judge(Evidence(close), margin=0.005).conditions[1].outcome is Outcome.HELD


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_are_no_finding(seeds):
    verdict = judge(evidence(noise=arm(0.4, seeds=seeds)))
    assert outcome(verdict, f"(fewest: {seeds})") is Outcome.FAILED and outcome(verdict, "(noise)") is Outcome.HELD
    assert not verdict.finding


def test_compared_are_the_seeds_that_both_have():
    pause = {seed: answers for seed, answers in arm(0.6, seeds=4).items() if seed != 0}
    verdict = judge(evidence(pause=pause))
    assert outcome(verdict, "(fewest: 2)") is Outcome.FAILED


@pytest.mark.parametrize(
    ("cot", "said"),
    [
        (0.95, "Written reasoning wins"),
        (0.9, "Written reasoning does as well"),
        (0.8, "Hidden thoughts are better"),
        (arm(0.9, spread=0.2), "Whether hidden thoughts or written reasoning"),
        (None, "Written reasoning (cot) for as many steps was not measured"),
    ],
)
def test_written_reasoning_is_spoken_of_first(cot, said):
    verdict = judge(evidence(cot=cot))
    assert verdict.readings[0].startswith(said)
    assert verdict.finding  # it is no condition, so the finding stands, behind it


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ({"pause": 0.9}, "More positions help, not their content"),
        ({"pause": 0.9, "no_thoughts": None}, "The thoughts' content is not what helps"),
        ({"pause": 0.9, "no_thoughts": 0.9, "direct": 0.9}, "The thoughts' content is not what helps"),
        ({"no_thoughts": 0.9}, "The curriculum helps, not the latents"),
        ({"no_thoughts": 0.95}, "The curriculum helps, not the latents"),
        ({"no_thoughts": 0.9, "direct": None}, "The latents add nothing"),
        ({"no_thoughts": 0.9, "direct": arm(0.4, seeds=2)}, "The latents add nothing"),
        ({"direct": 0.9}, "There is no gain at all"),
    ],
)
def test_a_control_that_does_as_well_is_told(accuracies, said):
    readings = judge(evidence(**accuracies)).readings
    assert sum(reading.startswith(said) for reading in readings) == 1
    if said.endswith(("helps", "nothing")):
        assert not any(reading.startswith(("More positions help", "The curriculum helps")) for reading in readings)


@pytest.mark.parametrize(
    ("far_hidden", "expected"),
    [
        (0.6, Outcome.HELD),  # the same
        (0.5, Outcome.FAILED),
        (arm(0.6, spread=0.2), Outcome.UNDECIDED),
    ],
)
def test_out_of_distribution_a_loss_must_be_ruled_out(far_hidden, expected):
    verdict = judge(evidence(far_hidden=far_hidden))
    assert outcome(verdict, "on longer") is expected and verdict.finding == (expected is Outcome.HELD)


GUESSING = 0.25


@pytest.mark.parametrize(
    ("hidden", "pause", "expected"),
    [
        (0.0, 0.0, Outcome.UNDECIDED),  # both fail
        (0.25, 0.25, Outcome.UNDECIDED),  # both guess
        (0.2, 0.1, Outcome.UNDECIDED),  # better than pause, worse than guessing
        (0.26, 0.25, Outcome.UNDECIDED),
        (0.25, 0.35, Outcome.FAILED),  # a loss is a loss
        (0.5, 0.25, Outcome.HELD),  # where pause fails and hidden does not, there was something to lose
        (0.5, 0.5, Outcome.HELD),
        (1.0, 1.0, Outcome.HELD),
        ({**arm(0.5), 1: arm(0.25)[1]}, 0.25, Outcome.UNDECIDED),  # not with every seed
    ],
)
def test_who_does_not_do_better_than_guessing_cannot_be_shown_to_be_no_worse(hidden, pause, expected):
    known = evidence(far_hidden=hidden, far_pause=pause)
    verdict = judge(replace(known, guessing={"longer": GUESSING}))
    assert outcome(verdict, "on longer (guessing gives 0.250") is expected
    assert verdict.finding == (expected is Outcome.HELD)
    [says] = [condition.says for condition in verdict.conditions if "on longer" in condition.says]
    assert expected is not Outcome.HELD or not says.endswith("hidden is not above it with every seed)")
    assert expected is not Outcome.UNDECIDED or says.endswith("hidden is not above it with every seed)")


def test_where_guessing_is_unknown_right_answers_are_above_it():
    for n in (40, 150, N):
        none = {seed: np.zeros(n, dtype=bool) for seed in range(3)}
        assert outcome(judge(evidence(far_hidden=none, far_pause=none)), "on longer") is Outcome.UNDECIDED
    assert outcome(judge(evidence(far_hidden=0.1, far_pause=0.1)), "guessing gives 0.000)") is Outcome.HELD
    lax = judge(evidence(far_hidden=0.1, far_pause=0.1), margin=0.3)
    assert outcome(lax, "pause on longer by 0.3 or more (guessing") is Outcome.HELD


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("accuracy", [0.4, 0.9, 0.95])
def test_no_sentence_claims_anything_of_fewer_than_three_seeds(seeds, accuracy):
    """Whether hidden thoughts are better, tied or worse."""
    names = ("cot", "direct", "no_thoughts", "pause", "borrowed")
    verdict = judge(evidence(**{name: arm(accuracy, seeds=seeds) for name in names}))
    assert [reading.split(",")[0].split(":")[0] for reading in verdict.readings] == [
        "Whether hidden thoughts or written reasoning (cot",
        "That the thoughts carry the reasoning is not shown",
    ]
    assert verdict.readings[0].endswith(f"{seeds} seed{'s' * (seeds > 1)}).")


def test_every_test_set_out_of_distribution_counts():
    both = evidence()
    far = {"longer": both.elsewhere["longer"], "denser": {"hidden": arm(0.5), "pause": arm(0.6)}}
    verdict = judge(Evidence(both.arms, both.interventions, far))
    assert outcome(verdict, "on longer") is Outcome.HELD and outcome(verdict, "on denser") is Outcome.FAILED


def test_nothing_measured_is_nothing_found():
    verdict = judge(Evidence({}))
    assert not verdict.finding and {c.outcome for c in verdict.conditions} == {Outcome.NOT_MEASURED, Outcome.FAILED}
    assert "is not shown" in format_verdict(verdict)


def test_the_text_has_every_condition_with_its_figures():
    verdict = judge(evidence(pause=0.9))
    text = format_verdict(verdict)
    lines = text.splitlines()
    assert lines[:3] == verdict.readings
    for condition in verdict.conditions:
        [line] = [line for line in lines if condition.says in line]
        assert line.startswith(condition.outcome.value)
        if condition.measured:
            assert all(f"{difference:+.3f}" in line for difference in condition.measured.paired.by_seed)
    assert any(line.startswith("better") and "pause against no_thoughts" in line for line in lines)


def test_more_comparisons_make_each_harder():
    alone = judge(Evidence({"hidden": arm(0.62, n=200), "pause": arm(0.5, n=200)}))
    one, many = (v.conditions[1].measured for v in (alone, judge(evidence(hidden=arm(0.62), pause=arm(0.5)))))
    assert one.p_holm == one.paired.p and many.p_holm >= many.paired.p
