"""Looking into the thoughts of all questions while they are asked, as they were put in: what `thoughts.py` writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from string import punctuation
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multicoco.config import RunConfig
from multicoco.data.example import Example
from multicoco.data.loader import Arrange, Encoder
from multicoco.errors import UserError
from multicoco.evaluation.interventions import thought_counts
from multicoco.evaluation.thoughts import QUANTILES, Norms, Thoughts
from multicoco.latent.head import logits_of
from multicoco.latent.lens import effective_rank, embedding_norms, mean_similarity, read_words, unit
from multicoco.methods import Method


@dataclass(frozen=True)
class Seen:
    """What was seen in the K thoughts of a question; all on the CPU.

    Attributes:
        vectors: (K, D) as they were fed.
        top_ids, top_probabilities: (K, k), see `latent.lens.Reading`.
        gold: the words of the step that each stands for; () where there is none.
        ranks: theirs.
    """

    vectors: Tensor
    top_ids: Tensor
    top_probabilities: Tensor
    gold: list[list[int]]
    ranks: list[list[int]]


class Lens:
    """Looks into the thoughts of batch after batch, after their passes.

    Args:
        arrange: lays the prompts out.
        examples: all questions, of which the one with the most thoughts says how often the head is called for a batch,
            on every rank.
        top_k: how many words are kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        method: Method,
        arrange: Arrange,
        examples: Sequence[Example],
        top_k: int,
    ):
        self.model = model
        self.encoder = encoder
        self.method = method
        self.examples = examples
        self.top_k = top_k
        self.most = most_thoughts(encoder, method, arrange, examples)

    def look(self, places: Sequence[int], input_ids: Tensor, fed: Tensor, read: Tensor) -> list[Seen]:
        """Of each question of a batch.

        Args:
            places: of the questions among the examples.
            input_ids: (B, T) prompts, on the CPU.
            fed, read: (B, T, D) on the device: what was fed, and what the head reads of it, which differ where thoughts
                are projected (`Passes.unprojected`).
        """
        assert self.method.latent_tokens is not None  # there are thoughts
        columns = [row.nonzero()[:, 0] for row in input_ids == self.method.latent_tokens.latent]
        gold = [self._gold(place, len(of_row)) for place, of_row in zip(places, columns, strict=True)]
        index = torch.zeros(len(columns), self.most, dtype=torch.long)
        words = torch.zeros(len(columns), self.most, max(map(len, chain.from_iterable(gold)), default=0)).long()
        for row, (of_row, of_gold) in enumerate(zip(columns, gold, strict=True)):
            index[row, : len(of_row)] = of_row
            for k, ids in enumerate(of_gold):
                words[row, k, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        device = fed.device
        at_thoughts = index.to(device)[..., None].expand(-1, -1, fed.shape[-1])  # [B, most, D]
        thoughts, unprojected = fed.gather(1, at_thoughts), read.gather(1, at_thoughts)
        reading = read_words(logits_of(self.model), unprojected, words.to(device), self.top_k)
        vectors, top_ids, top_probabilities = (x.cpu() for x in (thoughts, reading.top_ids, reading.top_probabilities))
        ranks = reading.ranks.tolist()
        return [
            Seen(
                vectors[row, :n].clone(),  # a view would be sent with the whole batch
                top_ids[row, :n].clone(),
                top_probabilities[row, :n].clone(),
                gold[row],
                [of_thought[: len(ids)] for of_thought, ids in zip(ranks[row], gold[row], strict=False)],
            )
            for row, n in enumerate(map(len, columns))
        ]

    def _gold(self, place: int, n_thoughts: int) -> list[list[int]]:
        """The words of the step that each thought stands for: its tokens, each once, that are more than punctuation."""
        steps = self.encoder.prompt(self.examples[place], "reasoning").steps
        standing_for = (self.method.schedule.step_of(k) for k in range(n_thoughts))
        tokenizer = self.encoder.prompt.tokenizer
        return [
            [
                token
                for token in dict.fromkeys(steps[step] if step < len(steps) else ())
                if text_of(tokenizer, token).strip().strip(punctuation)
            ]
            for step in standing_for
        ]


def most_thoughts(encoder: Encoder, method: Method, arrange: Arrange, examples: Sequence[Example]) -> int:
    """How many thoughts the question has that has the most of them; 0 where there are none."""
    rows = (arrange(example, encoder.prompt(example, method.asked))[0] for example in examples)
    return max(map(method.count_thoughts, rows), default=0)


def check_lens(
    config: RunConfig, methods: Mapping[str, Method], stage: int, examples: Sequence[Example], encoder: Encoder
) -> None:
    """Refuses to look into the thoughts of methods that have none, before anything runs.

    Args:
        stage: the last one that is evaluated.

    Raises:
        UserError: no question is asked with thoughts, by any of the methods.
    """
    counted = (thought_counts(method, stage, examples, encoder) for method in methods.values())
    if config.eval_config.thoughts and not any(map(any, counted)):
        raise UserError(
            f"eval_config.thoughts is true but {' and '.join(methods)} has none to look into: evaluate by a method "
            "with thoughts, such as coconut (and eval_latent_tokens other than 0), or set it to false"
        )


def text_of(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as text."""
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))


def embedding_scale(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Norms:
    """How long the embeddings of the tokenizer's words are. Every rank must call it."""
    embedding: Any = model.get_input_embeddings()
    rows: int = model.config.get_text_config().vocab_size
    known = sorted({token for token in tokenizer.get_vocab().values() if token < rows})
    norms = embedding_norms(embedding, torch.tensor(known, device=model.get_decoder().device))
    at = np.quantile(norms.numpy(), QUANTILES)
    return Norms(float(norms.mean()), dict(zip(QUANTILES, at.tolist(), strict=True)))


def collect(
    seen: Sequence[Seen],
    questions: Sequence[Example],
    method: Method,
    embedding: Norms,
    tokenizer: PreTrainedTokenizerBase,
    about: Mapping[str, Any],
) -> Thoughts:
    """What was seen in the thoughts of all questions, in their order, as columns."""
    counts = [len(one.vectors) for one in seen]
    most = max(counts)
    cosines = torch.full((sum(counts), most), float("nan"), dtype=torch.float64)
    first = [0, *accumulate(counts)]
    for one, start, n in zip(seen, first, counts, strict=False):
        directions = unit(one.vectors)
        cosines[start : start + n, :n] = directions @ directions.T
    by_position = [torch.stack([one.vectors[k] for one in seen if len(one.vectors) > k]) for k in range(most)]
    gold = [ids for one in seen for ids in one.gold]
    steps = [method.schedule.step_of(k) + 1 for n in counts for k in range(n)]
    n_steps = [len(question.steps) for question, n in zip(questions, counts, strict=True) for _ in range(n)]
    top_ids = torch.cat([one.top_ids for one in seen]).numpy()
    gold_ids = [*chain.from_iterable(gold)]
    words, known = sorted({*top_ids.flatten().tolist(), *gold_ids}), set(tokenizer.get_vocab().values())
    return Thoughts(
        about=about,
        questions=tuple(question.id for question in questions),
        words={token: text_of(tokenizer, token) if token in known else "" for token in words},
        embedding=embedding,
        first=np.array(first, np.int64),
        step=np.array([step if step <= n else 0 for step, n in zip(steps, n_steps, strict=True)], np.int32),
        norm=torch.cat([torch.linalg.vector_norm(one.vectors.double(), dim=-1) for one in seen]).float().numpy(),
        top_ids=top_ids.astype(np.int32),
        top_probabilities=torch.cat([one.top_probabilities for one in seen]).numpy(),
        cosines=cosines.float().numpy(),
        gold_first=np.array([0, *accumulate(map(len, gold))], np.int64),
        gold_ids=np.array(gold_ids, np.int32),
        gold_ranks=np.array([rank for one in seen for ranks in one.ranks for rank in ranks], np.int32),
        n=np.array([len(vectors) for vectors in by_position], np.int32),
        effective_rank=np.array([effective_rank(vectors) for vectors in by_position], np.float32),
        mean_similarity=np.array([mean_similarity(vectors) for vectors in by_position], np.float32),
    )
