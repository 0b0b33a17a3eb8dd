"""Whether latents are computed exactly: the loss of an example with thoughts in it, through the passes over the cache,
and by plain recomputing.

Recomputing is Coconut in its slowest and simplest form (Hao et al. 2024, arXiv:2412.06769, section 3), with nothing but
the model's own forward: the whole sequence once for every thought, which is what the head was then given in the column
before, put into the output of the embeddings; and once more for the logits. So a cache that a layer does not know of,
what a module keeps from one call to the next, or a sequence that a layer wants to see as a whole, is a difference.
"""

from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from multicoco.curriculum import IGNORE_INDEX
from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.self_check import (
    MOST_LOGITS,
    Tolerance,
    head_only_at,
    in_fp32,
    kernel_for,
    own_logits,
    tolerance_of,
    without_traces,
)
from multicoco.models.checks import position_limit
from multicoco.models.families import family_of

_MOST_WORDS = 8  # behind the first thoughts, and as many behind the last


@dataclass(frozen=True)
class Exactness:
    """What came out for an example.

    Attributes:
        kind: the model's type.
        tokens, thoughts: of the example, the latter among the former.
        passes, recomputed: mean losses of its last tokens.
        difference: of the logits, or of the losses if that is more, in the spread of the logits over the vocabulary.
        tolerance: of the difference.
    """

    kind: str
    tokens: int
    thoughts: int
    passes: float
    recomputed: float
    difference: float
    tolerance: Tolerance

    @property
    def agrees(self) -> bool:
        return self.difference <= self.tolerance.of_spread  # not so if it is no number

    @property
    def refusal(self) -> str:
        """Of a model whose latents are computed otherwise."""
        return (
            f"latent passes do not compute what the {self.kind} model computes: of an example of {self.tokens} tokens, "
            f"{self.thoughts} of them thoughts, the loss is {self.passes:.6f} through the passes and "
            f"{self.recomputed:.6f} by recomputing the whole sequence for every thought; logits differ by "
            f"{self.difference:.1e} of their spread, rounding explains {self.tolerance.of_spread:.0e}: its attention, "
            "its positions or a layer with a memory of its own are of an unsupported kind, choose another model"
        )


def require_exact(model: PreTrainedModel, kernel: str, example: dict[str, Tensor]) -> None:
    """Args: as of `measure_exactness`.

    Raises:
        UserError: as there, or the losses disagree; names both.
    """
    found = measure_exactness(model, kernel, example)
    if not found.agrees:
        raise UserError(found.refusal)


@torch.no_grad()
def measure_exactness(model: PreTrainedModel, kernel: str, example: dict[str, Tensor]) -> Exactness:
    """Puts thoughts among the last words of an example and computes its loss in both ways, in fp32.

    Args:
        model: whole, before ZeRO partitions it, on any device; it is left as it was.
        kernel: of the passes; see `LatentReasoner`.
        example: of one row, as of `self_check`.

    Raises:
        UserError: the passes cannot run the model, or its loss is no number.
    """
    row = example["input_ids"][example["attention_mask"].bool()].to(model.device)
    names = family_of(model.config).input_names
    inputs = {name: example[name].to(model.device) for name in names if example.get(name) is not None}
    ids, latent = _with_thoughts(model, row)
    n_labelled = min(len(ids) - 1, max(1, MOST_LOGITS // model.config.get_text_config().vocab_size))
    columns = torch.arange(len(ids) - 1 - n_labelled, len(ids) - 1, device=model.device)  # whose next token is labelled
    kind, was_training = model.config.model_type, model.training
    try:
        with without_traces(model), in_fp32(model.eval()):
            own = _by_recomputing(model, ids, ids == latent, inputs, columns)
            reasoner = LatentReasoner(model, latent, kernel_for(model, kernel))
            loss, passes = _by_passes(reasoner, ids, inputs, columns)
    except Exception as error:  # a model's code may raise anything
        raise UserError(
            f"latent passes cannot run this {kind} model ({type(error).__name__}: {error}): choose another model"
        ) from error
    finally:
        model.train(was_training)
    if not own.isfinite().all():
        raise UserError(f"the {kind} model's own logits are not finite: its weights are damaged")
    tolerance, spread = tolerance_of(model), own.std(-1).mean().item()
    recomputed = F.cross_entropy(own, ids[columns + 1]).item()
    difference = max(tolerance.difference(passes, own), abs(loss - recomputed) / spread)
    return Exactness(kind, len(ids), int((ids == latent).sum()), loss, recomputed, difference, tolerance)


def _with_thoughts(model: PreTrainedModel, row: Tensor) -> tuple[Tensor, int]:
    """(T,) tokens -> (T + 3,), two thoughts and one more among the words at its end, and the id that is a thought's."""
    limit, image = position_limit(model), getattr(model.config, "image_token_id", None)
    row = row if limit is None else row[: limit - 3]
    latent = next(id for id in count() if id not in {*row.tolist(), image})
    images = (row == image).nonzero()[:, 0].tolist() if image is not None else []
    words = min(_MOST_WORDS, (len(row) - 1 - max(images, default=0)) // 2)
    before, between, after = row.split([len(row) - 2 * words, words, words])
    thought = row.new_tensor([latent])
    return torch.cat([before, thought, thought, between, thought, after]), latent


def _by_recomputing(
    model: PreTrainedModel, ids: Tensor, is_latent: Tensor, inputs: dict[str, Tensor], columns: Tensor
) -> Tensor:
    """(T,) tokens -> (n, V) logits of n columns."""
    places = is_latent.nonzero()[:, 0].tolist()
    # a thought's id is none of the model's: what it is given in its place, a word, never gets further than the hook
    words = torch.where(is_latent, ids[0], ids)
    thoughts: list[Tensor] = []
    seen: list[Tensor] = []

    def fill(module: nn.Module, args: Any, embeds: Tensor) -> Tensor:
        embeds = embeds.clone()
        for place, thought in zip(places, thoughts, strict=False):
            embeds[:, place] = thought
        return embeds

    handles = [
        model.get_input_embeddings().register_forward_hook(fill),
        model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0])),
    ]
    try:
        for place in places:
            own_logits(model, words, inputs, columns[-1:])
            thoughts.append(seen.pop()[:, place - 1])
        return own_logits(model, words, inputs, columns)
    finally:
        for handle in handles:
            handle.remove()


def _by_passes(
    reasoner: LatentReasoner, ids: Tensor, inputs: dict[str, Tensor], columns: Tensor
) -> tuple[float, Tensor]:
    """(T,) tokens, padded on both sides -> the mean loss of what follows n columns, and (n, V) logits of these."""
    input_ids, attention_mask = F.pad(ids, (1, 1), value=int(ids[0])), F.pad(torch.ones_like(ids), (1, 1))
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[1 + columns + 1] = ids[columns + 1]
    batch = reasoner.family.batch([inputs])
    with head_only_at(reasoner.model, 1 + columns[None]):
        out = reasoner(input_ids[None], attention_mask[None], labels[None], return_logits=True, **batch)
    return out.loss.item(), out.logits[0]
