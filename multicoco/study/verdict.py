"""The reading rule: what it takes to say that the thoughts carry the reasoning, and what to say otherwise.

"The thoughts carry the reasoning" needs, all of it:

- the model with hidden thoughts beats the same model trained without thoughts, with pauses, and with borrowed thoughts;
- its thoughts replaced by their mean, by noise or by another question's, or made from another input, hurt it;
- out of distribution it is not worse than with pauses, and above guessing, where there is something to be worse at;
- at least three seeds.

A sentence that claims something needs three seeds too.

One answerer is better than another if the interval of the paired difference lies above 0, the p-value by Holm over all
differences that are looked at is below 0.05, the difference is above 0 in every seed, and the interval reaches beyond
the margin. Two tie if the interval lies within the margin on both sides. Everything else is undecided, and what is
undecided or was not measured never counts for a finding, of any kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from multicoco.evaluation.metrics import wilson_interval
from multicoco.evaluation.report import aligned
from multicoco.study.compare import DIFFERENCE_HEADER, format_difference
from multicoco.study.statistics import Paired, compare_paired, holm

MARGIN = 0.02
ALPHA = 0.05
FEWEST_SEEDS = 3

HIDDEN, COT, DIRECT = "hidden", "cot", "direct"
NO_THOUGHTS, PAUSE, BORROWED = "no_thoughts", "pause", "borrowed"
TO_BEAT = {
    NO_THOUGHTS: "beats the same curriculum without thoughts (no_thoughts)",
    PAUSE: "beats pauses in the thoughts' place (pause)",
    BORROWED: "beats thoughts of other questions, trained with (borrowed)",
}
TO_HURT = {
    "mean": "is hurt by the mean thought in each one's place (mean)",
    "noise": "is hurt by noise in the thoughts' place (noise)",
    "transplant": "is hurt by another question's thoughts (transplant)",
    "other_input": "is hurt by thoughts from another input (other_input)",
}

_NOT_WORSE = "hidden is not worse than pause on {}"
_POSITIONS, _CURRICULUM = "pause against no_thoughts", "no_thoughts against direct"

Answers = Mapping[int, NDArray[np.bool_]]
"""Seed -> which questions were answered correctly; always the same questions."""


@dataclass(frozen=True)
class Evidence:
    """What was measured; what was not is left out.

    Attributes:
        arms: by their names in this module, on the questions in distribution.
        interventions: of the hidden arm's models, by name, on the same questions.
        elsewhere: test set out of distribution -> arms.
        guessing: of those test sets, the accuracy of guessing; where questions have no options, and none is given, 0.
    """

    arms: Mapping[str, Answers]
    interventions: Mapping[str, Answers] = field(default_factory=dict)
    elsewhere: Mapping[str, Mapping[str, Answers]] = field(default_factory=dict)
    guessing: Mapping[str, float] = field(default_factory=dict)


class Relation(StrEnum):
    """Of a first answerer to a second."""

    BETTER = "better"
    WORSE = "worse"
    TIED = "tied"
    OPEN = "undecided"


@dataclass(frozen=True)
class Measured:
    """A difference that was looked at, with its p-value by Holm over all of them."""

    paired: Paired
    p_holm: float
    relation: Relation


class Outcome(StrEnum):
    HELD = "held"
    FAILED = "failed"
    UNDECIDED = "undecided"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Condition:
    """One of those that the finding needs; `measured` is None where it is not about a difference, or not known."""

    says: str
    outcome: Outcome
    measured: Measured | None = None


@dataclass(frozen=True)
class Verdict:
    """What may be said.

    Attributes:
        finding: whether the thoughts carry the reasoning.
        readings: sentences in the order in which they must be said.
        conditions: of the finding.
        besides: the other differences that the sentences rest on, by what they compare.
    """

    finding: bool
    readings: list[str]
    conditions: list[Condition]
    besides: dict[str, Measured]


def judge(evidence: Evidence, margin: float = MARGIN) -> Verdict:
    """Applies the rule.

    Args:
        margin: accuracies that differ by less than this tie.
    """
    arms = evidence.arms
    asked: dict[str, tuple[Answers | None, Answers | None]] = {
        **{name: (arms.get(HIDDEN), arms.get(name)) for name in (*TO_BEAT, COT, DIRECT)},
        **{name: (arms.get(HIDDEN), evidence.interventions.get(name)) for name in TO_HURT},
        **{_on(place): (there.get(HIDDEN), there.get(PAUSE)) for place, there in evidence.elsewhere.items()},
        _POSITIONS: (arms.get(PAUSE), arms.get(NO_THOUGHTS)),
        _CURRICULUM: (arms.get(NO_THOUGHTS), arms.get(DIRECT)),
    }
    measured = _measure(asked, margin)
    conditions = [
        *(_better(f"hidden {says}", measured.get(name)) for name, says in (TO_BEAT | TO_HURT).items()),
        *(_not_worse(place, evidence, measured.get(_on(place)), margin) for place in evidence.elsewhere),
    ]
    if not evidence.elsewhere:
        conditions.append(Condition(_NOT_WORSE.format("any test set out of distribution"), Outcome.NOT_MEASURED))
    conditions.append(_enough_seeds(conditions))
    finding = all(condition.outcome is Outcome.HELD for condition in conditions)
    named = {COT: "hidden against cot", DIRECT: "hidden against direct"}
    besides = {named.get(name, name): found for name, found in measured.items() if name in named or " against " in name}
    readings = [_about_cot(measured.get(COT)), _about_the_finding(conditions), *_what_else_helps(measured)]
    return Verdict(finding, readings, conditions, besides)


def _on(place: str) -> str:
    return f"on {place}"


def _measure(asked: Mapping[str, tuple[Answers | None, Answers | None]], margin: float) -> dict[str, Measured]:
    """Over the seeds that both have."""
    found: dict[str, Paired] = {}
    for name, (first, second) in asked.items():
        seeds = sorted((first or {}).keys() & (second or {}).keys())
        if first and second and seeds:
            tables = [np.stack([answers[seed] for seed in seeds]) for answers in (first, second)]
            found[name] = compare_paired(*tables)
    adjusted = holm([paired.p for paired in found.values()])
    return {
        name: Measured(paired, p_holm, _relation(paired, p_holm, margin))
        for (name, paired), p_holm in zip(found.items(), adjusted, strict=True)
    }


def _relation(paired: Paired, p_holm: float, margin: float) -> Relation:
    low, high = paired.interval
    if -margin <= low and high <= margin:
        return Relation.TIED
    if p_holm < ALPHA and low > 0 and min(paired.by_seed) > 0:
        return Relation.BETTER
    if p_holm < ALPHA and high < 0 and max(paired.by_seed) < 0:
        return Relation.WORSE
    return Relation.OPEN


def _better(says: str, measured: Measured | None) -> Condition:
    if measured is None:
        return Condition(says, Outcome.NOT_MEASURED)
    outcomes = {Relation.BETTER: Outcome.HELD, Relation.OPEN: Outcome.UNDECIDED}
    return Condition(says, outcomes.get(measured.relation, Outcome.FAILED), measured)


def _not_worse(place: str, evidence: Evidence, measured: Measured | None, margin: float) -> Condition:
    """Held if a loss of the margin or more is ruled out and any loss is not shown, of hidden thoughts that are above
    guessing: where both arms fail none is worse, which shows nothing."""
    says = _NOT_WORSE.format(place)
    if measured is None:
        return Condition(says, Outcome.NOT_MEASURED)
    guessing = evidence.guessing.get(place, 0.0)
    is_above = _above(evidence.elsewhere[place][HIDDEN], guessing)
    says += "" if margin == MARGIN else f" by {margin:g} or more"
    says += f" (guessing gives {guessing:.3f}{'' if is_above else ', and hidden is not above it with every seed'})"
    low, high = measured.paired.interval
    if high < 0:
        return Condition(says, Outcome.FAILED, measured)
    return Condition(says, Outcome.HELD if is_above and low > -margin else Outcome.UNDECIDED, measured)


def _above(answers: Answers, guessing: float) -> bool:
    """Whether Wilson's interval of every seed's accuracy is."""
    return all(wilson_interval(int(right.sum()), right.size)[0] > guessing for right in answers.values())


def _enough_seeds(conditions: list[Condition]) -> Condition:
    counts = [len(condition.measured.paired.by_seed) for condition in conditions if condition.measured is not None]
    says = f"at least {FEWEST_SEEDS} seeds in each of these (fewest: {min(counts, default=0)})"
    return Condition(says, Outcome.HELD if counts and min(counts) >= FEWEST_SEEDS else Outcome.FAILED)


def _claim(measured: Measured | None) -> Relation:
    """What a sentence may say of it: with fewer than three seeds, nothing."""
    if measured is None or len(measured.paired.by_seed) < FEWEST_SEEDS:
        return Relation.OPEN
    return measured.relation


def _about_cot(measured: Measured | None) -> str:
    if measured is None:
        return (
            "Written reasoning (cot) for as many steps was not measured: what the latents are worth beside it is open."
        )
    said = {
        Relation.WORSE: "Written reasoning wins: cot, for as many steps, is better than hidden thoughts",
        Relation.TIED: "Written reasoning does as well: cot, for as many steps, ties with hidden thoughts",
        Relation.OPEN: "Whether hidden thoughts or written reasoning (cot, for as many steps) is better is undecided",
        Relation.BETTER: "Hidden thoughts are better than written reasoning (cot) for as many steps",
    }
    return f"{said[_claim(measured)]} ({_figures(measured)})."


def _about_the_finding(conditions: list[Condition]) -> str:
    by_outcome = {outcome: [c for c in conditions if c.outcome is outcome] for outcome in Outcome}
    held = len(by_outcome[Outcome.HELD])
    if held == len(conditions):
        return f"The thoughts carry the reasoning: all {held} conditions held."
    counts = ", ".join(f"{len(some)} {outcome}" for outcome, some in by_outcome.items() if some)
    return f"That the thoughts carry the reasoning is not shown: of {len(conditions)} conditions {counts}."


def _what_else_helps(measured: Mapping[str, Measured]) -> list[str]:
    """Sentences for controls that do as well as hidden thoughts."""
    readings = []

    def does_as_well(name: str) -> bool:
        return _claim(measured.get(name)) in (Relation.TIED, Relation.WORSE)

    def helps(name: str) -> bool:
        return _claim(measured.get(name)) is Relation.BETTER

    if does_as_well(PAUSE):
        as_well = f"pause does as well as hidden thoughts ({_figures(measured[PAUSE])})."
        readings.append(
            f"More positions help, not their content: {as_well}"
            if helps(_POSITIONS)
            else f"The thoughts' content is not what helps: {as_well} That more positions help is not shown either."
        )
    if does_as_well(NO_THOUGHTS):
        as_well = f"no_thoughts does as well as hidden thoughts ({_figures(measured[NO_THOUGHTS])})."
        readings.append(
            f"The curriculum helps, not the latents: {as_well}"
            if helps(_CURRICULUM)
            else f"The latents add nothing: {as_well} That the curriculum helps is not shown either."
        )
    if does_as_well(DIRECT):
        readings.append(f"There is no gain at all: direct answers do as well ({_figures(measured[DIRECT])}).")
    return readings


def _figures(measured: Measured) -> str:
    paired, (low, high) = measured.paired, measured.paired.interval
    seeds = f"{len(paired.by_seed)} seed{'s' if len(paired.by_seed) > 1 else ''}"
    return f"difference {paired.difference:+.3f}, 95% interval {low:+.3f} to {high:+.3f}, {seeds}"


def format_verdict(verdict: Verdict) -> str:
    """The sentences, then every condition with its figures, the differences of the seeds one by one."""
    rows = [[condition.outcome.value, condition.says, *_cells(condition.measured)] for condition in verdict.conditions]
    rows += [[found.relation.value, name, *_cells(found)] for name, found in verdict.besides.items()]
    header = ["outcome", "condition, and what else was compared", *DIFFERENCE_HEADER, "by seed"]
    return "\n".join([*verdict.readings, "", *aligned([header, *rows])])


def _cells(measured: Measured | None) -> list[str]:
    if measured is None:
        return [""] * (len(DIFFERENCE_HEADER) + 1)
    paired = measured.paired
    by_seed = " ".join(f"{difference:+.3f}" for difference in paired.by_seed)
    return [*format_difference(paired.difference, paired.interval, paired.p, measured.p_holm), by_seed]
