"""One optimizer step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import Tensor

from multicoco.curriculum import IGNORE_INDEX
from multicoco.engine.ranks import world_size
from multicoco.methods import Method
from multicoco.training.lookout import OnItsWay
from multicoco_kernels import send


class Stepped(NamedTuple):
    """What a step leaves to look at.

    Attributes:
        losses: (micro-batches,) this rank's shares of the mean loss; those of all ranks add up to it.
        counts: (2,) of labelled and of all tokens, over all ranks.
        thoughts: (B, C, D) what was fed to the C latent columns of each micro-batch.
        flags: the sums over all ranks of what each brought.
    """

    losses: Tensor
    counts: Tensor
    thoughts: list[Tensor]
    flags: OnItsWay


def train_step(
    engine: DeepSpeedEngine, method: Method, micro_batches: list[dict[str, Any]], n_passes: int, flags: Sequence[int]
) -> Stepped:
    """One optimizer step. The loss is the mean over the labelled tokens of the global batch, however it is cut up.

    What else a method's loss is divided by (`Method.counts`) is summed over the global batch as well; so are `flags`,
    which go along. Nothing is read from the device.

    Args:
        micro_batches: as of `Transfer.ahead`.
    """
    labelled = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in micro_batches)
    total = sum(int(batch["attention_mask"].sum()) for batch in micro_batches)
    others = [sum(numbers) for numbers in zip(*map(method.counts, micro_batches), strict=True)]
    device = micro_batches[0]["on_device"]["input_ids"].device
    summed = send(torch.tensor([labelled, total, *others, *flags]), device)
    dist.all_reduce(summed)
    counts, heeded = summed[: len(summed) - len(flags)], OnItsWay(summed[len(summed) - len(flags) :])
    # DeepSpeed divides by the ranks and by the accumulation steps, whatever each of them holds
    pieces = world_size() * len(micro_batches)
    shares, thoughts = [], []
    for batch in micro_batches:
        inputs = dict(batch["on_device"])
        if "supervision" in inputs:
            inputs["supervision"] = inputs["supervision"] | {"divisors": counts[2:].clamp(min=1) / pieces}
        output = engine(**inputs, n_passes=n_passes, loss_divisor=counts[0].clamp(min=1) / pieces)
        engine.backward(output.loss)
        engine.step()
        shares.append(output.loss.detach() / pieces)
        thoughts.append(output.thoughts.detach().clone())  # where there are none, no view of all embeddings
    return Stepped(torch.stack(shares), counts[:2], thoughts, heeded)
