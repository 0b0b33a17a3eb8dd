"""By teacher forcing: how likely the model finds the right answer, and each of the choices.

An answer is measured where it would stand if the model answered at once: after the question, its thoughts and, in
prompts that ask for reasoning, "Answer:", which is given. Its end of turn belongs to it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from multicoco.curriculum import IGNORE_INDEX
from multicoco.data.example import Example
from multicoco.data.loader import Encoder
from multicoco.data.prompt import ANSWER_PREFIX, Asked
from multicoco.latent.generate import log_likelihoods
from multicoco.latent.passes import Passes
from multicoco.latent.reasoner import LatentReasoner


class Likelihoods:
    """Measures the answers of questions: their choices or, of open ones, the right answer if it is known.

    Args:
        examples: all questions; if none of them has an answer the model is not called, on any rank.
    """

    def __init__(self, reasoner: LatentReasoner, encoder: Encoder, asked: Asked, examples: Sequence[Example]):
        self.reasoner = reasoner
        self.encoder = encoder
        self.asked = asked
        self.most_answers = max(len(answers(example)) for example in examples)
        tokenizer = encoder.prompt.tokenizer
        self.n_given = len(tokenizer.encode(ANSWER_PREFIX, add_special_tokens=False)) if asked == "reasoning" else 0

    def measure(self, passes: Passes, examples: Sequence[Example]) -> list[list[float]]:
        """For each question of a batch, in the order of its `answers`, their log-probabilities (natural)."""
        texts = [self._tokens(example) for example in examples]
        if not self.most_answers:
            return [[] for _ in examples]
        longest = max((len(ids) for of_example in texts for ids in of_example), default=1)
        input_ids = torch.zeros(len(examples), self.most_answers, longest, dtype=torch.long)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for row, of_example in enumerate(texts):
            for place, ids in enumerate(of_example):
                input_ids[row, place, : len(ids)] = torch.tensor(ids)
                labels[row, place, self.n_given : len(ids)] = torch.tensor(ids[self.n_given :])
        measured = log_likelihoods(self.reasoner.model, passes, input_ids, labels)
        return [row[: len(of_example)] for row, of_example in zip(measured.tolist(), texts, strict=True)]

    def _tokens(self, example: Example) -> list[list[int]]:
        # without images: they are of the prompt, which is not looked at
        return [self.encoder.prompt(answer, self.asked).answer for answer in answers(example)]


def answers(example: Example) -> list[Example]:
    """The question with each of its choices as the right one; an open one as it is, if its answer is known."""
    if example.choices:
        return [replace(example, answer=text, answer_index=i) for i, text in enumerate(example.choices)]
    return [example] if example.answer is not None else []


def sample_fields(example: Example, measured: Sequence[float]) -> dict[str, Any]:
    """What of it goes to the samples file."""
    right = example.answer_index if example.choices else 0
    return {
        "gold_logprob": measured[right] if measured and right is not None else None,
        "choice_logprobs": list(measured) if example.choices else None,
    }


def likeliest(measured: Sequence[float]) -> int | None:
    """The index of the likeliest choice, the first of equals; None where one is not a number, as after an overflow."""
    if any(map(math.isnan, measured)):
        return None
    return max(range(len(measured)), key=lambda i: (measured[i], -i))


def summarize_likelihoods(samples: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The mean over the questions whose answer is known, and of those with choices how often it is the likeliest."""
    known = [sample for sample in samples if sample["gold_logprob"] is not None]
    chosen = [likeliest(s["choice_logprobs"]) == s["gold"] for s in known if s["choice_logprobs"]]
    return {
        "mean_gold_logprob": fmean(sample["gold_logprob"] for sample in known) if known else None,
        "likelihood_accuracy": fmean(chosen) if chosen else None,
    }
