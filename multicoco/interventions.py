"""Interventions on thoughts as a run config names them, and which other question gives what. No torch, no state.

Positions are counted from 1, as in h_1 .. h_K, the K thoughts of a question. Everything here is a function of the seed
and the questions' ids, so that the number of ranks and the size of batches change nothing.
"""

import random
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

# name -> how it is written; those in _FED put something into the thoughts' place
_FED = {
    "zero": "zero",
    "mean": "mean",
    "mean_by_step": "mean_by_step",
    "noise": "noise",
    "perturb": "perturb(0.3)",
    "first": "first",
    "permute": "permute",
    "swap": "swap(2)",
    "transplant": "transplant",
    "other_input": "other_input, other_input(blank), other_input(reverse)",
}
_FORMS = _FED | {"mask": "mask", "cut": "cut(1)", "extend": "extend(9)", "only": "only(3, mean)"}
_NUMBERED = {"perturb": float, "swap": int, "cut": int, "extend": int}
_SPEC = re.compile(r"([a-z_]+)\s*(?:\((.*)\))?", re.DOTALL)


@dataclass(frozen=True)
class Intervention:
    """One intervention.

    Attributes:
        kind: its name without what is in brackets.
        number: the scale of perturb, the position of swap and of only, the number of thoughts of cut and extend.
        variant: of other_input: blank or reverse.
        inner: what only does at its position.
    """

    kind: str
    number: float = 0
    variant: str = ""
    inner: "Intervention | None" = None

    def __str__(self) -> str:
        number = f"{self.number:.15g}"  # as it was written
        if self.inner:
            return f"only({number}, {self.inner})"
        argument = number if self.kind in _NUMBERED else self.variant
        return f"{self.kind}({argument})" if argument else self.kind

    @property
    def file_name(self) -> str:
        """`str` of it in characters that are safe in a file's name."""
        return re.sub(r"[^\w.]+", "-", str(self)).strip("-")

    @property
    def fed(self) -> "Intervention":
        """What is fed at the positions that it concerns: itself, or what `only` does there."""
        return self.inner or self

    @property
    def first_position(self) -> int:
        """The fewest thoughts that a question must have for it to be of any effect."""
        if self.kind == "only" and self.inner:
            return max(int(self.number), self.inner.first_position)
        if self.kind in ("first", "permute"):
            return 2
        return int(self.number) + 1 if self.kind in ("swap", "cut") else 1

    @property
    def changes_nothing(self) -> bool:
        """Whether `only` is to do at its position what concerns others alone."""
        if self.fed.kind == "swap":
            return self.kind == "only" and self.number - self.fed.number not in (0, 1)
        return self.kind == "only" and self.fed.kind == "first" and self.number == 1


def split_specs(specs: Iterable[str]) -> list[str]:
    """YAML splits `[zero, only(3, mean)]` at every comma: puts what belongs together between brackets together again.

    The parts are not looked at otherwise.
    """
    joined, depth, parts = ", ".join(specs), 0, [""]
    for character in joined:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts] if joined else []


def parse(spec: str) -> Intervention:
    """An intervention as it is written, such as `zero`, `perturb(0.3)` or `only(3, mean)`.

    Raises:
        ValueError: there is none of that name, or it is written in another form.
    """
    spec = spec.strip()
    match = _SPEC.fullmatch(spec)
    kind, argument = (match[1], match[2]) if match else (spec, None)
    if kind not in _FORMS:
        raise ValueError(f"there is no intervention {spec!r}: take some of {', '.join(_FORMS.values())}")
    wrong = ValueError(f"intervention {spec!r} is written otherwise: as {_FORMS[kind]}")
    try:
        if kind == "only":
            position, _, inner_spec = (argument or "").partition(",")
            inner = parse(inner_spec)
            if int(position) < 1 or inner.kind not in _FED or inner.variant == "reverse":
                raise wrong
            return Intervention("only", int(position), inner=inner)
        if kind in _NUMBERED:
            number = _NUMBERED[kind](argument or "")
            if not (0 <= number < float("inf")) or (kind in ("swap", "extend") and number < 1):
                raise wrong
            return Intervention(kind, number)
    except ValueError as error:
        raise error if "intervention" in str(error) else wrong from None
    if argument is not None and not (kind == "other_input" and argument.strip() in ("blank", "reverse")):
        raise wrong
    return Intervention(kind, variant=(argument or "").strip())


def resize_thoughts(row: Sequence[int], latent: int, intervention: Intervention) -> list[int]:
    """A prompt with as many latent tokens as cut and extend ask for; as it is, where it has no more, or no fewer.

    Those that go, and those that come, are the last ones.
    """
    places = [place for place, token in enumerate(row) if token == latent]
    if intervention.kind not in ("cut", "extend") or not places:
        return list(row)
    wanted, last = int(intervention.number), places[-1]
    if intervention.kind == "cut":
        gone = set(places[wanted:])
        return [token for place, token in enumerate(row) if place not in gone]
    more = [latent] * max(0, wanted - len(places))
    return [*row[: last + 1], *more, *row[last + 1 :]]


def draw(seed: int, question: str, purpose: str) -> int:
    """64 random bits, as good as independent for every question and purpose."""
    return int.from_bytes(sha256(f"{seed}/{purpose}/{question}".encode()).digest()[:8], "big")


def order_of(n_thoughts: int, bits: int) -> list[int]:
    """A random order of thoughts, counted from 0, that is another than theirs, if there are two or more."""
    generator, order = random.Random(bits), list(range(n_thoughts))
    while n_thoughts > 1 and order == sorted(order):
        generator.shuffle(order)
    return order


def choose_donors(
    seed: int,
    ids: Sequence[str],
    groups: Sequence[Hashable],
    answers: Sequence[str | None] | None = None,
    possible: Mapping[int, frozenset[str]] | None = None,
) -> list[int | None]:
    """Another question for each: all stand on a ring, in an order drawn from the seed and the ids, and the next one is
    taken. So questions give about once each.

    Args:
        ids: of all questions.
        groups: questions give to those of their own group only.
        answers: if given, the other's answer must be known, and another one.
        possible: the answers that a question can be given, by its index: others are taken only if there are none.

    Returns: for each question the index of the other one, None where there is none.
    """
    rings: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(ids)), key=lambda i: (draw(seed, ids[i], "donor"), ids[i])):
        rings.setdefault(groups[index], []).append(index)
    donors: list[int | None] = [None] * len(ids)
    for ring in rings.values():
        for place, index in enumerate(ring):
            preferred = (possible or {}).get(index)
            for other in (ring[(place + step) % len(ring)] for step in range(1, len(ring))):
                if answers is not None and (answers[other] is None or answers[other] == answers[index]):
                    continue
                fits = not preferred or (answers is not None and answers[other] in preferred)
                if donors[index] is None or fits:
                    donors[index] = other
                if fits:
                    break
    return donors
