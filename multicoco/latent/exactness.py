"""Whether latents are computed exactly: the loss of an example with thoughts in it, and its gradients, through the
passes over the cache, and by plain recomputing.

Recomputing is Coconut in its slowest and simplest form (Hao et al. 2024, arXiv:2412.06769, section 3), with nothing but
the model's own forward: the whole sequence once for every thought, which is what the head was then given in the column
before, put into the output of the embeddings; and once more for the logits. So a cache that a layer does not know of,
what a module keeps from one call to the next, or a sequence that a layer wants to see as a whole, is a difference. A
loss may be right and what is learned from it wrong, where a layer cuts the gradient of single columns: so gradients are
compared too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
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

MOST_GRADIENTS = 2**28  # numbers: 1 GiB
_MOST_WORDS = 8  # behind the first thoughts, and as many behind the last
# A gradient is measured in its largest entry, or in this share of the largest entry of all if that is more: that of a
# bias of keys that are not rotated is 0, and nothing but rounding is computed of it.
_SMALL = 1e-2


@dataclass(frozen=True)
class Gradients:
    """What came out for the gradients of an example's loss.

    Attributes:
        compared, trained: of how many parameters, and how many are trained.
        worst: the name of the parameter whose gradients are furthest apart.
        difference: of its gradients, in the largest entry of the recomputed one; see `_SMALL`.
        tolerance: of the difference.
    """

    compared: int
    trained: int
    worst: str
    difference: float
    tolerance: float


@dataclass(frozen=True)
class Exactness:
    """What came out for an example.

    Attributes:
        kind: the model's type.
        tokens, thoughts: of the example, the latter among the former.
        passes, recomputed: mean losses of its last tokens.
        difference: of the logits, or of the losses if that is more, in the spread of the logits over the vocabulary.
        tolerance: of the difference.
        gradients: None if nothing is trained, or logits or losses are too far apart.
    """

    kind: str
    tokens: int
    thoughts: int
    passes: float
    recomputed: float
    difference: float
    tolerance: Tolerance
    gradients: Gradients | None = None

    @property
    def losses_agree(self) -> bool:
        return self.difference <= self.tolerance.of_spread  # not so if it is no number

    @property
    def agrees(self) -> bool:
        gradients = self.gradients
        return self.losses_agree and (gradients is None or gradients.difference <= gradients.tolerance)

    @property
    def refusal(self) -> str:
        """Of a model whose latents are computed otherwise."""
        example = f"of an example of {self.tokens} tokens, {self.thoughts} of them thoughts,"
        if self.losses_agree and (gradients := self.gradients):
            return (
                f"latent passes do not learn what the {self.kind} model learns: {example} the loss is right, "
                f"{self.passes:.6f}, and the gradient of {gradients.worst} is {gradients.difference:.1e} of its "
                "largest entry off that by recomputing the whole sequence for every thought, rounding explains "
                f"{gradients.tolerance:.0e}: a layer cuts or changes the gradients of single columns, or of what "
                "is in a cache, choose another model"
            )
        return (
            f"latent passes do not compute what the {self.kind} model computes: {example} the loss is "
            f"{self.passes:.6f} through the passes and "
            f"{self.recomputed:.6f} by recomputing the whole sequence for every thought; logits differ by "
            f"{self.difference:.1e} of their spread, rounding explains {self.tolerance.of_spread:.0e}: its attention, "
            "its positions or a layer with a memory of its own are of an unsupported kind, choose another model"
        )


def require_exact(model: PreTrainedModel, kernel: str, example: dict[str, Tensor], trains: bool) -> None:
    """Args: as of `measure_exactness`.

    Raises:
        UserError: as there, or the losses disagree, and names both; or gradients do, and names the worst parameter.
    """
    found = measure_exactness(model, kernel, example, trains)
    if not found.agrees:
        raise UserError(found.refusal)


def measure_exactness(model: PreTrainedModel, kernel: str, example: dict[str, Tensor], trains: bool) -> Exactness:
    """Puts thoughts among the last words of an example and computes its loss in both ways, in fp32; and its gradients.

    Takes the memory of the model in fp32, of the activations of two forwards, and twice of the gradients that are
    compared: of the parameters that train, the smallest first, as many as have no more than MOST_GRADIENTS numbers.

    Args:
        model: whole, before ZeRO partitions it, on any device; it is left as it was.
        kernel: of the passes; see `LatentReasoner`.
        example: of one row, as of `self_check`.
        trains: whether gradients are compared too, of the parameters that want one.

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
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad} if trains else {}
    compared = _smallest(trained)
    try:
        with without_traces(model), in_fp32(model.eval()), torch.set_grad_enabled(bool(compared)):
            reasoner = LatentReasoner(model, latent, kernel_for(model, kernel))  # before a forward that is run again
            own = _by_recomputing(model, ids, ids == latent, inputs, columns)
            loss, passes = _by_passes(reasoner, ids, inputs, columns)
            recomputed = F.cross_entropy(own, ids[columns + 1])
            tolerance, spread = tolerance_of(model), own.detach().std(-1).mean().item()
            difference = max(tolerance.difference(passes, own.detach()), abs(loss - recomputed).item() / spread)
            found = Exactness(
                kind, len(ids), int((ids == latent).sum()), loss.item(), recomputed.item(), difference, tolerance
            )
            if compared and found.losses_agree:
                worst, of_worst = _furthest_apart(compared, recomputed, loss)
                gradients = Gradients(len(compared), len(trained), worst, of_worst, 10 * tolerance.of_spread)
                found = replace(found, gradients=gradients)
    except Exception as error:  # a model's code may raise anything
        raise UserError(
            f"latent passes cannot run this {kind} model ({type(error).__name__}: {error}): choose another model"
        ) from error
    finally:
        model.train(was_training)
    if not own.isfinite().all():
        raise UserError(f"the {kind} model's own logits are not finite: its weights are damaged")
    return found


def _smallest(trained: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Of MOST_GRADIENTS numbers together; of each layer's norms and biases first, so that all layers are among them."""
    chosen, left = {}, MOST_GRADIENTS
    for name, parameter in sorted(trained.items(), key=lambda item: item[1].numel()):
        left -= parameter.numel()
        if left < 0:
            break
        chosen[name] = parameter
    return chosen


def _furthest_apart(parameters: dict[str, nn.Parameter], expected: Tensor, actual: Tensor) -> tuple[str, float]:
    """The name of the parameter in which the gradients of two losses are furthest apart, and how far."""
    of_both = (torch.autograd.grad(loss, [*parameters.values()], allow_unused=True) for loss in (expected, actual))
    pairs = dict(zip(parameters, zip(*of_both, strict=True), strict=True))
    largest = {name: 0.0 if own is None else own.abs().max().item() for name, (own, _) in pairs.items()}
    least = max(_SMALL * max(largest.values()), torch.finfo(torch.float32).tiny)
    apart = dict.fromkeys(parameters, 0.0)
    for name, pair in pairs.items():
        given = [gradient for gradient in pair if gradient is not None]  # none is a gradient of 0
        if given:
            difference = (given[0] - given[1] if len(given) == 2 else given[0]).abs().max().item()
            relative = difference / max(largest[name], least)
            apart[name] = relative if math.isfinite(relative) else math.inf
    return max(apart.items(), key=lambda item: item[1])


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
    for place in places:
        before = columns.new_tensor([place - 1])
        thoughts.append(_forward(model, words, inputs, before, places, thoughts)[0][0])
    return _forward(model, words, inputs, columns, places, thoughts)[1]


def _forward(
    model: PreTrainedModel,
    words: Tensor,
    inputs: dict[str, Tensor],
    columns: Tensor,
    places: Sequence[int],
    thoughts: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The model's own forward, the first thoughts in their places -> (n, D) what its head is given in n columns, and
    (n, V) logits. It is run again in backward, so that the activations of no more than one are held."""

    def run(*thoughts: Tensor) -> tuple[Tensor, Tensor]:
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
            logits = own_logits(model, words, inputs, columns)
        finally:
            for handle in handles:
                handle.remove()
        return seen[0][0, columns], logits

    out: tuple[Tensor, Tensor] = checkpoint(run, *thoughts, use_reentrant=False)
    return out


def _by_passes(
    reasoner: LatentReasoner, ids: Tensor, inputs: dict[str, Tensor], columns: Tensor
) -> tuple[Tensor, Tensor]:
    """(T,) tokens, padded on both sides -> the mean loss of what follows n columns, and (n, V) logits of these, without
    a gradient."""
    input_ids, attention_mask = F.pad(ids, (1, 1), value=int(ids[0])), F.pad(torch.ones_like(ids), (1, 1))
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[1 + columns + 1] = ids[columns + 1]
    batch = reasoner.family.batch([inputs])
    with head_only_at(reasoner.model, 1 + columns[None]):
        out = reasoner(input_ids[None], attention_mask[None], labels[None], return_logits=True, **batch)
    return out.loss, out.logits[0].detach()
