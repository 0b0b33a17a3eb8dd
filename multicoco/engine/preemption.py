"""SIGTERM and SIGUSR1, with which schedulers announce that a job's time is over."""

import signal
from time import monotonic
from types import FrameType


class Preempted(Exception):
    """Training has stopped because a rank was signalled; on all ranks."""


class StopSignal:
    """Notes the signals from its creation on, instead of dying of them.

    Attributes:
        received: when the first one came (time.monotonic), None before.
    """

    def __init__(self) -> None:
        self.received: float | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or monotonic()
