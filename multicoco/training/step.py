"""One optimizer step."""

from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import Tensor

from multicoco.curriculum import IGNORE_INDEX
from multicoco.engine.ranks import world_size
from multicoco.methods import Method


def train_step(
    engine: DeepSpeedEngine, method: Method, micro_batches: list[dict[str, Any]], n_passes: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """One optimizer step. The loss is the mean over the labelled tokens of the global batch, however it is cut up.

    What else a method's loss is divided by (`Method.counts`) is summed over the global batch as well.

    Returns: this rank's shares of that mean, one per micro-batch (those of all ranks add up to it), and the global
    counts of labelled and of all tokens.
    """
    labelled = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in micro_batches)
    total = sum(int(batch["attention_mask"].sum()) for batch in micro_batches)
    others = [sum(numbers) for numbers in zip(*map(method.counts, micro_batches), strict=True)]
    counts = torch.tensor([labelled, total, *others], device=device)
    dist.all_reduce(counts)
    # DeepSpeed divides by the ranks and by the accumulation steps, whatever each of them holds
    pieces = world_size() * len(micro_batches)
    shares = []
    for batch in micro_batches:
        tensors = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")} | batch["inputs"]
        inputs: dict[str, Any] = {key: tensor.to(device, non_blocking=True) for key, tensor in tensors.items()}
        if supervision := {key: tensor.to(device, non_blocking=True) for key, tensor in batch["supervision"].items()}:
            inputs["supervision"] = supervision | {"divisors": counts[2:].clamp(min=1) / pieces}
        loss = method.loss(engine(**inputs, n_passes=n_passes, loss_divisor=counts[0] / pieces, seeds=batch["seeds"]))
        engine.backward(loss)
        engine.step()
        shares.append(loss.detach() / pieces)
    return torch.stack(shares), counts
