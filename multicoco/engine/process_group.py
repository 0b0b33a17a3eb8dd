"""This process among the ranks of a run: its place, its device, and the watch over the others."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from multicoco.engine.deepspeed import device, init_distributed
from multicoco.engine.watchdog import Watchdog

# not the user's to act on, once a process
warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)


class ProcessGroup:
    """Joined from its creation on.

    Args:
        lost_rank_seconds: a rank of which nothing is heard for so long ends the run.
    """

    def __init__(self, lost_rank_seconds: float):
        transformers_logging.disable_progress_bar()  # one bar of its own is enough
        self.rank, self.size = init_distributed()
        self.device = device()
        self._watchdog = Watchdog(lost_rank_seconds)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around a run: what a lost rank has caused is explained; at the end all ranks are done. Collective."""
        try:
            yield
        except RuntimeError as error:
            self._watchdog.explain(error)
            raise
        self._watchdog.stop()
