"""Which columns of a sequence each pass over the language model runs, and which of them it first gives thoughts.

A thought is made of the hidden state in the column before it. In sequence, each waits for the pass of that column; in
parallel, every pass makes all of them again, of the hidden states that the pass before has left. No torch: whoever
counts passes needs none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from multicoco.curriculum import Fork


class Pass(NamedTuple):
    """Columns [start, end), run together; those that have been run before are run again.

    Attributes:
        fills: how many of its first columns are given thoughts before, in rows that have one there. If thoughts wait
            for passes at all, at least one of all passes but the first and a branch's: what makes them is called alike
            in any batch.
        at: where in the cache these columns begin, if not at `start`: they write over what is there.
    """

    start: int
    end: int
    fills: int = 0
    at: int | None = None

    @property
    def column(self) -> int:
        """Where in the cache it begins."""
        return self.start if self.at is None else self.at

    @property
    def stop(self) -> int:
        """Where it ends there."""
        return self.column + self.end - self.start


class PassSchedule(Protocol):
    """From the columns in which any row of a batch is latent to its passes."""

    def passes(self, latent: Sequence[int], cuts: Sequence[int], length: int, n_passes: int | None) -> list[Pass]:
        """Exactly n_passes, if that is not None: every rank and step calls the modules alike.

        Splitting a causal sequence anywhere changes nothing, so passes that are only there to make up the number take
        single columns, first those after the last thought, then those before it.

        Args:
            latent: columns, in their order; none of them is the first one.
            cuts: further columns, behind thoughts, at which a pass has to begin.
            length: of the sequence.

        Raises:
            ValueError: n_passes is too small for the columns or too large for the sequence.
        """

    def n_passes(self, n_thoughts: int) -> int:
        """That rows of up to so many thoughts take, without cuts."""


@dataclass(frozen=True)
class Sequential:
    """A pass begins at every latent column (Coconut, Hao et al. 2024, arXiv:2412.06769, section 3)."""

    def passes(self, latent: Sequence[int], cuts: Sequence[int], length: int, n_passes: int | None) -> list[Pass]:
        starts = {0, *latent, *cuts}
        last = max(starts)
        starts |= _spare(n_passes, len(starts), (*range(last + 1, length), *range(last - 1, 0, -1)), starts)
        return [Pass(start, end, int(start > 0)) for start, end in pairwise([*sorted(starts), length])]

    def n_passes(self, n_thoughts: int) -> int:
        return n_thoughts + 1


SEQUENTIAL = Sequential()


@dataclass(frozen=True)
class Jacobi:
    """All latent columns are in the first pass, with their tokens' embeddings, and `iterations` more run all of them
    again, the last one with what follows (PCCoT, Wu et al. 2025, arXiv:2506.18582, section 3).

    With as many iterations as a row has thoughts, these are `Sequential`'s: the k-th is right from the k-th on.
    """

    iterations: int

    def passes(self, latent: Sequence[int], cuts: Sequence[int], length: int, n_passes: int | None) -> list[Pass]:
        if not latent:
            return SEQUENTIAL.passes(latent, cuts, length, n_passes)
        first, end = latent[0], latent[-1] + 1
        if any(cut < end for cut in cuts):
            raise ValueError("thoughts that are made in parallel end together: align the rows at their last latent one")
        iterations, starts = min(self.iterations, len(latent)), {0, *cuts}
        spare = (*range(max(end, *starts), length), *range(first - 1, 0, -1))
        starts |= _spare(n_passes, len(starts) + iterations, spare, starts)
        before, behind = (sorted(s for s in starts if (s < end) == is_before) for is_before in (True, False))
        again = [Pass(first, end, end - first)] * (iterations - 1)
        last, *rest = (Pass(start, stop, 1) for start, stop in pairwise([first, *behind, length]))
        return [
            *(Pass(start, stop, int(start > 0)) for start, stop in pairwise([*before, end])),
            *again,
            last._replace(fills=end - first),
            *rest,
        ]

    def n_passes(self, n_thoughts: int) -> int:
        return min(self.iterations, n_thoughts) + 1


@dataclass(frozen=True)
class OnePass:
    """No thought waits for a pass."""

    def passes(self, latent: Sequence[int], cuts: Sequence[int], length: int, n_passes: int | None) -> list[Pass]:
        return [one._replace(fills=0) for one in SEQUENTIAL.passes((), cuts, length, n_passes)]

    def n_passes(self, n_thoughts: int) -> int:
        return 1


@dataclass(frozen=True)
class Branched:
    """Another schedule's passes, and one more, of the rows' branches."""

    schedule: PassSchedule
    fork: Fork

    def passes(self, latent: Sequence[int], cuts: Sequence[int], length: int, n_passes: int | None) -> list[Pass]:
        """Raises: ValueError also for a branch with thoughts, after nothing, or shorter than what it writes over."""
        column, branch = self.fork.column, self.fork.branch
        if not 0 < column <= branch or length - branch < max(1, branch - column):
            raise ValueError(f"columns [{branch}, {length}) cannot write over [{column}, {branch}): pad them")
        if any(one >= branch for one in latent):
            raise ValueError(f"a branch has no thoughts: column {latent[-1]} is latent, branches begin at {branch}")
        trunk = self.schedule.passes(latent, cuts, branch, None if n_passes is None else n_passes - 1)
        return [*trunk, Pass(branch, length, at=column)]

    def n_passes(self, n_thoughts: int) -> int:
        return self.schedule.n_passes(n_thoughts) + 1


def inner_columns(passes: Sequence[Pass]) -> set[int]:
    """Which of the passes, counted from 0, are of one column behind all that is there: not the first, nor the last."""
    numbered = enumerate(pairwise(passes[:-1]), start=1)
    return {n for n, (before, one) in numbered if one.end - one.start == 1 and one.column == before.stop}


def _spare(n_passes: int | None, needed: int, columns: Iterable[int], taken: set[int]) -> set[int]:
    """The first of the columns, as many as passes are to be made up for."""
    if n_passes is None:
        return set()
    if needed > n_passes:
        raise ValueError(
            f"the batch's latent columns need {needed} passes, n_passes is {n_passes}: align the rows at their first "
            "latent token, or raise n_passes"
        )
    spare = [column for column in columns if column not in taken]
    if needed + len(spare) < n_passes:
        raise ValueError(f"{n_passes} passes need as many columns, the batch has fewer: pad it")
    return set(spare[: n_passes - needed])
