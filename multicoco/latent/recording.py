"""What is run once, and from then on started as a whole: CUDA graphs."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class NotRecordable(Exception):
    """What runs in a pass cannot be in a graph; says what it is."""


@dataclass(frozen=True)
class Recording:
    """What was run once and can be run again.

    Attributes:
        outputs: that each replay writes anew.
        replay: reads what the run read, as it is now.
    """

    outputs: Sequence[Tensor]
    replay: Callable[[], None]


class Recorder(Protocol):
    """What makes recordings on a kind of device."""

    device_type: str

    def warm_up(self, run: Callable[[], object]) -> None:
        """Raises: NotRecordable."""

    def record(self, *runs: Callable[[], Sequence[Tensor]]) -> list[Recording]:
        """Of what has been warmed up, and will be replayed in this order."""


class CudaRecorder:
    """CUDA graphs. Those that are recorded together share memory: what one only needs while it runs is written over by
    the next, and whoever needs an output or a saved tensor longer holds on to it."""

    device_type = "cuda"

    def warm_up(self, run: Callable[[], object]) -> None:
        stream, mode = _side_stream(torch.cuda.current_device()), torch.cuda.get_sync_debug_mode()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with warnings.catch_warnings(action="ignore"), torch.cuda.stream(stream):  # the mode is new, it warns
                torch.cuda.set_sync_debug_mode("error")
                run()
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
            raise NotRecordable("a layer waits for the device") from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            torch.cuda.current_stream().wait_stream(stream)

    def record(self, *runs: Callable[[], Sequence[Tensor]]) -> list[Recording]:
        pool, recordings = torch.cuda.graph_pool_handle(), []
        for run in runs:
            graph = torch.cuda.CUDAGraph()
            # other threads copy batches to the device meanwhile
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = run()
            recordings.append(Recording(outputs, graph.replay))
        return recordings


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One of a device for all: the products of each stream have a workspace of their own, which stays."""
    return torch.cuda.Stream(device)
