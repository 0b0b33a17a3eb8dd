"""The file of an evaluation's thoughts: columns, one row a thought, in safetensors. No torch: pages read it too."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from multicoco.errors import UserError

FORMAT = "multicoco.thoughts/1"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

# what is stored as tensors, and how
_COLUMNS = {
    **dict.fromkeys(("first", "gold_first"), "i8"),
    **dict.fromkeys(("step", "top_ids", "gold_ids", "gold_ranks", "n"), "i4"),
    **dict.fromkeys(("norm", "top_probabilities", "cosines", "effective_rank", "mean_similarity"), "f4"),
}

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Norms:
    """Of all words' embeddings: the mean, and quantiles by their share."""

    mean: float
    quantiles: Mapping[float, float]


@dataclass(frozen=True)
class TopWord:
    """One of the likeliest words that the head reads in a thought."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class GoldWord:
    """A word of the written step that a thought stands for.

    Attributes:
        rank: how many words the head finds at least as likely, this one among them; 1: none but it.
    """

    token: int
    text: str
    rank: int


@dataclass(frozen=True)
class Thought:
    """One thought of one question.

    Attributes:
        position: from 1, as in h_1 .. h_K.
        step: the written step that it stands for, from 1; None: the question has no such step.
        norm: its Euclidean length.
        top: the likeliest words, in their order.
        gold: the words of the step, in the order of its text.
        cosines: to h_1 .. h_K, itself among them; not a number where one of the two is 0.
    """

    position: int
    step: int | None
    norm: float
    top: tuple[TopWord, ...]
    gold: tuple[GoldWord, ...]
    cosines: tuple[float, ...]


@dataclass(frozen=True)
class Position:
    """The k-th thoughts of all questions that have one.

    Attributes:
        position: k, from 1.
        n: questions.
        effective_rank: see `latent.lens.effective_rank`.
        mean_similarity: the mean cosine between two questions' thoughts; not a number for one question.
    """

    position: int
    n: int
    effective_rank: float
    mean_similarity: float


@dataclass(frozen=True, eq=False)
class Thoughts:
    """All thoughts of Q questions, N together, at most K of one; `of` and `positions` give them as objects.

    Attributes:
        about: what was evaluated: mode, stage, intervention (None: as trained), checkpoint, c_thought.
        questions: their ids, in the order of the file they are from.
        words: the texts of all tokens that occur.
        embedding: how long the embeddings are that thoughts stand among.
        first: (Q + 1,) question i has rows first[i] .. first[i + 1] - 1.
        step: (N,) as `Thought.step`, 0 for none.
        norm: (N,)
        top_ids, top_probabilities: (N, k)
        cosines: (N, K), not a number beyond the question's own.
        gold_first: (N + 1,) the words of row j's step are gold_first[j] .. gold_first[j + 1] - 1 of the next two.
        gold_ids, gold_ranks: (G,)
        n, effective_rank, mean_similarity: (K,) by position.
    """

    about: Mapping[str, Any]
    questions: tuple[str, ...]
    words: Mapping[int, str]
    embedding: Norms
    first: Offsets
    step: Integers
    norm: Floats
    top_ids: Integers
    top_probabilities: Floats
    cosines: Floats
    gold_first: Offsets
    gold_ids: Integers
    gold_ranks: Integers
    n: Integers
    effective_rank: Floats
    mean_similarity: Floats

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Where each question stands, by its id."""
        return {question: place for place, question in enumerate(self.questions)}

    def of(self, question: str) -> tuple[Thought, ...]:
        """The thoughts of a question, by its id; () if it had none.

        Raises:
            KeyError: it was not evaluated.
        """
        place = self.places[question]
        return tuple(self._thought(row) for row in range(self.first[place], self.first[place + 1]))

    @property
    def positions(self) -> tuple[Position, ...]:
        """What the questions' thoughts have in common, by position."""
        columns = (self.n.tolist(), self.effective_rank.tolist(), self.mean_similarity.tolist())
        return tuple(Position(k, *values) for k, values in enumerate(zip(*columns, strict=True), start=1))

    @property
    def position(self) -> Integers:
        """(N,) of each row, from 1."""
        counts = np.diff(self.first)
        return (np.arange(counts.sum()) - np.repeat(self.first[:-1], counts) + 1).astype(np.int32)

    def _thought(self, row: int) -> Thought:
        place = int(np.searchsorted(self.first, row, side="right")) - 1
        gold = slice(self.gold_first[row], self.gold_first[row + 1])
        top = zip(self.top_ids[row].tolist(), self.top_probabilities[row].tolist(), strict=True)
        ranked = zip(self.gold_ids[gold].tolist(), self.gold_ranks[gold].tolist(), strict=True)
        return Thought(
            position=row - int(self.first[place]) + 1,
            step=int(self.step[row]) or None,
            norm=float(self.norm[row]),
            top=tuple(TopWord(token, self.words[token], probability) for token, probability in top),
            gold=tuple(GoldWord(token, self.words[token], rank) for token, rank in ranked),
            cosines=tuple(self.cosines[row, : self.first[place + 1] - self.first[place]].tolist()),
        )

    def to_bytes(self) -> bytes:
        """The content of the file."""
        quantiles = {str(share): value for share, value in self.embedding.quantiles.items()}
        told = {
            "about": self.about,
            "questions": self.questions,
            "words": {str(token): text for token, text in self.words.items()},
            "embedding": {"mean": self.embedding.mean, "quantiles": quantiles},
        }
        tensors = {name: np.ascontiguousarray(getattr(self, name), kind) for name, kind in _COLUMNS.items()}
        return save(tensors, {"format": FORMAT} | {key: json.dumps(value) for key, value in told.items()})


def read_thoughts(path: Path) -> Thoughts:
    """A file of thoughts.

    Raises:
        UserError: it cannot be read, or is another file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            if told.get("format") != FORMAT:
                raise ValueError(f"its format is {told.get('format')}, not {FORMAT}")
            about, questions, words, embedding = (
                json.loads(told[key]) for key in ("about", "questions", "words", "embedding")
            )
            columns = {name: file.get_tensor(name) for name in _COLUMNS}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no thoughts can be read from it ({error}): evaluate the run again") from error
    quantiles = {float(share): value for share, value in embedding["quantiles"].items()}
    return Thoughts(
        about=about,
        questions=tuple(questions),
        words={int(token): text for token, text in words.items()},
        embedding=Norms(embedding["mean"], quantiles),
        **columns,
    )
