"""`multicoco compare`: evaluated runs on the same questions, pair by pair."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from multicoco.errors import UserError
from multicoco.evaluation.guessing import chance
from multicoco.evaluation.metrics import wilson_interval
from multicoco.evaluation.report import aligned, write_named
from multicoco.study.samples import read_evaluations, shared_questions
from multicoco.study.statistics import compare_paired, holm

_FLIPS_SHOWN = 12  # of each direction; the JSON file has all


@dataclass(frozen=True)
class Row:
    """An evaluation on the compared questions."""

    name: str
    correct: int
    n: int
    accuracy: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """The first evaluation against the second.

    Attributes:
        difference: the first's accuracy less the second's; ci95 is Newcombe's interval of it.
        p: exact McNemar; p_holm: adjusted over all pairs.
        gained, lost: the ids of the questions that the first alone, and the second alone, answers correctly.
    """

    first: str
    second: str
    difference: float
    ci95: tuple[float, float]
    p: float
    p_holm: float
    gained: list[str]
    lost: list[str]


@dataclass(frozen=True)
class Comparison:
    """What `multicoco compare` writes.

    Attributes:
        n: questions that were compared.
        chance: what guessing gives on them, None if not all of them have options.
    """

    n: int
    chance: float | None
    evaluations: list[Row]
    pairs: list[Pair]


def compare(names: Sequence[str], reference: str | None = None, only_shared: bool = False) -> Comparison:
    """Compares evaluations, every two of them.

    Args:
        names: run folders, of which every evaluation counts, or `RUN:MODE`.
        reference: one of the evaluations; then each of the others is compared with it alone.
        only_shared: evaluations that were also asked other questions are compared on those that all share.

    Raises:
        UserError: fewer than two evaluations, one named twice, files that cannot be read, or different questions.
    """
    evaluations = [evaluation for name in names for evaluation in read_evaluations(name)]
    labels = [evaluation.name for evaluation in evaluations]
    files = [evaluation.file.resolve() for evaluation in evaluations]  # a run may be named in several ways
    if twice := [label for label, file in zip(labels, files, strict=True) if files.count(file) > 1]:
        raise UserError(f"{', '.join(dict.fromkeys(twice))}: named twice")
    if len(labels) < 2:
        raise UserError(f"{labels[0]} is the only evaluation: name another run to compare it with")
    indices = list(combinations(range(len(labels)), 2))
    if reference is not None:
        [chosen, *more] = [evaluation.file.resolve() for evaluation in read_evaluations(reference)]
        if more or chosen not in files:
            raise UserError(f"--reference {reference} must be one of {', '.join(labels)}")
        other = files.index(chosen)
        indices = [(place, other) for place in range(len(labels)) if place != other]
    shared = shared_questions(evaluations, only_shared)
    results = [compare_paired(shared.correct[[a]], shared.correct[[b]]) for a, b in indices]
    ids = [str(question["id"]) for question in shared.questions]

    def alone(a: int, b: int) -> list[str]:
        is_alone = shared.correct[a] & ~shared.correct[b]
        return [name for name, counts in zip(ids, is_alone, strict=True) if counts]

    pairs = [
        Pair(labels[a], labels[b], paired.difference, paired.interval, paired.p, p_holm, alone(a, b), alone(b, a))
        for (a, b), paired, p_holm in zip(indices, results, holm([paired.p for paired in results]), strict=True)
    ]
    n = len(ids)
    counts = shared.correct.sum(axis=1).tolist()
    rows = [Row(label, k, n, k / n, wilson_interval(k, n)) for label, k in zip(labels, counts, strict=True)]
    return Comparison(n, chance(shared.questions), rows, pairs)


def write_comparison(comparison: Comparison, out: Path) -> None:
    """As JSON, with the names of `Comparison`, `Row` and `Pair`.

    Raises:
        UserError: the file cannot be written.
    """
    write_named(out, asdict(comparison))


def format_comparison(comparison: Comparison) -> str:
    """Two tables, and the flips of every pair."""
    guessing = "" if comparison.chance is None else f"; guessing gives {comparison.chance:.3f}"
    rows = [
        [row.name, f"{row.accuracy:.3f}", "{:.3f} - {:.3f}".format(*row.ci95), str(row.correct)]
        for row in comparison.evaluations
    ]
    pairs = [
        [
            *(pair.first, pair.second),
            *format_difference(pair.difference, pair.ci95, pair.p, pair.p_holm),
            *(str(len(pair.gained)), str(len(pair.lost))),
        ]
        for pair in comparison.pairs
    ]
    flips = [
        f"{one} right and {other} wrong: {', '.join(ids[:_FLIPS_SHOWN])}"
        + (f", and {more} more" if (more := len(ids) - _FLIPS_SHOWN) > 0 else "")
        for pair in comparison.pairs
        for one, other, ids in ((pair.first, pair.second, pair.gained), (pair.second, pair.first, pair.lost))
        if ids
    ]
    return "\n".join(
        [
            f"{comparison.n} questions{guessing}",
            "",
            *aligned([["evaluation", "accuracy", "95% interval", "correct"], *rows]),
            "",
            *aligned([["first", "second", *DIFFERENCE_HEADER, "gained", "lost"], *pairs]),
            "",
            *flips,
            *([""] if flips else []),
            "Intervals: Wilson's, and Newcombe's of the paired difference (first less second). "
            f"p: McNemar's exact test, two-sided; by Holm over this family of {len(pairs)}.",
        ]
    )


DIFFERENCE_HEADER = ("difference", "95% interval", "p", "p by Holm")


def format_difference(difference: float, interval: tuple[float, float], p: float, p_holm: float) -> list[str]:
    """The cells below DIFFERENCE_HEADER."""
    return [f"{difference:+.3f}", "{:+.3f} to {:+.3f}".format(*interval), *(_format_p(value) for value in (p, p_holm))]


def _format_p(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else f"{p:.0e}"
