"""Looking into thoughts: the words that the model's head reads in them, and how much thoughts differ.

A thought is the last hidden state of the column before it, which has left the model's last norm: it is what the head is
given at any other column. So the head reads it as it is, without another norm (the logit lens of nostalgebraist, 2020,
which looks into earlier layers, has to apply that norm first). What stands behind the head, a factor or a cap, belongs
to it (`latent.kinds`), and `latent.self_check` compares both with the whole model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ROWS = 16384  # of the embedding table at a time


@dataclass(frozen=True)
class Reading:
    """What a head reads in the K thoughts of B rows.

    Attributes:
        top_ids, top_probabilities: (B, K, k) the likeliest words, in the order of their fp32 logits, of equals the
            first of the vocabulary.
        ranks: (B, K, G) of the words that were asked for: how many words are at least as likely, itself among them.
    """

    top_ids: Tensor
    top_probabilities: Tensor
    ranks: Tensor


@torch.no_grad()
def read_words(head: Callable[[Tensor], Tensor], thoughts: Tensor, words: Tensor, top_k: int) -> Reading:
    """Reads thoughts (B, K, D) by a head, (B, 1, D) -> (B, 1, V); words (B, K, G) are ids whose ranks are wanted.

    Calls the head once for each of the K, whatever stands there, as ZeRO-3 needs; (B, V) logits at a time.
    """
    top_ids, top_probabilities, ranks = [], [], torch.empty_like(words)
    for k in range(thoughts.shape[1]):
        logits = head(thoughts[:, k : k + 1])[:, 0].float()  # [B, V]
        top = _in_order(logits).topk(min(top_k, logits.shape[-1])).indices
        top_ids.append(top)
        top_probabilities.append(logits.softmax(-1).gather(-1, top))
        for place in range(words.shape[2]):
            word = words[:, k, place, None]
            ranks[:, k, place] = (logits >= logits.gather(-1, word)).sum(-1)
    return Reading(torch.stack(top_ids, dim=1), torch.stack(top_probabilities, dim=1), ranks)


def _in_order(logits: Tensor) -> Tensor:
    """(B, V) fp32 -> int64, all different, in the same order; of equals the first is the greatest."""
    bits = (logits + 0.0).view(torch.int32)  # -0 becomes 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # as integers, negative floats are in reverse
    return (ordered << 32) - torch.arange(logits.shape[-1], device=logits.device)


@torch.no_grad()
def embedding_norms(embedding: nn.Module, ids: Tensor) -> Tensor:
    """The norms of the embeddings of words (N,), as they are fed: (N,) fp64, on the CPU."""
    parts = [torch.linalg.vector_norm(embedding(some).double(), dim=-1).cpu() for some in ids.split(_ROWS)]
    return torch.cat(parts)


def effective_rank(vectors: Tensor) -> float:
    """How many directions vectors (N, D) fill: exp of the entropy of their singular values, normalised to a sum of 1
    (Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality"). 1 where all are multiples of one
    vector, at most min(N, D); not centred. Not a number where there are none, all are 0 or one is not finite.
    """
    wide = vectors.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    if not len(gram) or not gram.isfinite().all() or not gram.any():
        return float("nan")
    squares: Tensor = torch.linalg.eigvalsh(gram)  # of the singular values
    rounding = len(gram) * torch.finfo(squares.dtype).eps * squares[-1]
    values = squares[squares > rounding].sqrt()
    shares = values / values.sum()
    return float((-shares * shares.log()).sum().exp())


def mean_similarity(vectors: Tensor) -> float:
    """The mean cosine between two of the vectors (N, D), over all pairs; not a number with fewer than two, or if one is
    0 or not finite."""
    n = len(vectors)
    if n < 2:
        return float("nan")
    total = unit(vectors).sum(0)
    return float((total @ total - n) / (n * (n - 1)))


def unit(vectors: Tensor) -> Tensor:
    """(..., D) in fp64, of norm 1; what is 0 becomes not a number, having no direction."""
    wide = vectors.double()
    length: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide / length
