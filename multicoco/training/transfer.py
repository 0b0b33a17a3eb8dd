"""Batches on their way to the device: each is sent while the step before it is still computed there."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

TOKENS = ("input_ids", "attention_mask", "labels")


class Transfer:
    """Copies on a stream of their own, one step ahead. On CPUs, the same calls in the same order.

    Args:
        stay: names of inputs that the model reads on the host (`models.families.Family.host_inputs`).
    """

    def __init__(self, device: torch.device, stay: Collection[str]):
        self.device = device
        self.stay = stay
        self.streams = torch.get_device_module(device)
        self.stream = self.streams.Stream()

    def ahead(self, steps: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each step, with `on_device` beside what the collator made: the keyword arguments that
        `LatentReasoner.forward` takes of it. The next step's are sent before a step's are given out."""
        waiting = None
        for step in steps:
            sent = self._send(step)
            if waiting is not None:
                yield self._given_out(*waiting)
            waiting = sent
        if waiting is not None:
            yield self._given_out(*waiting)

    def _send(self, step: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
        # what the copies are written over may be read by steps that are given out, but not by the one that is next
        self.stream.wait_stream(self.streams.current_stream())
        with self.streams.stream(self.stream):
            sent = [batch | {"on_device": self._arguments(batch)} for batch in step]
        return sent, self.stream.record_event()

    def _given_out(self, step: list[dict[str, Any]], arrived: Any) -> list[dict[str, Any]]:
        self.streams.current_stream().wait_event(arrived)
        return step

    def _arguments(self, batch: dict[str, Any]) -> dict[str, Any]:
        on_host = {key: batch[key] for key in TOKENS}
        arguments: dict[str, Any] = {key: self._moved(tensor) for key, tensor in on_host.items()}
        for key, tensor in batch["inputs"].items():
            arguments[key] = tensor if key in self.stay else self._moved(tensor)
        if supervision := batch["supervision"]:
            tensors = {key: value for key, value in supervision.items() if isinstance(value, Tensor)}
            arguments["supervision"] = supervision | {key: self._moved(tensor) for key, tensor in tensors.items()}
            on_host |= tensors
        return arguments | {"seeds": batch["seeds"], "on_host": on_host}

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)  # the loader has pinned it
