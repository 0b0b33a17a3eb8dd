"""TensorBoard's event files, <run folder>/tensorboard: `tensorboard --logdir runs`."""

from pathlib import Path
from typing import Any, ClassVar

from multicoco.errors import UserError
from multicoco.tracking.sink import Sink

_SECONDS = 10  # at most until what was logged can be seen


class TensorBoard(Sink):
    """Every number as a scalar.

    Args:
        next_step: from which on the run logs; what an earlier start has logged of these steps is no longer shown.

    Raises:
        UserError: TensorBoard is not installed.
    """

    title: ClassVar[str] = "TensorBoard"

    def __init__(self, run_dir: Path, next_step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"tracking has tensorboard, and it cannot be used ({error}): pip install 'multicoco[tensorboard]', or "
                "leave it out"
            ) from error
        self.writer = SummaryWriter(run_dir / "tensorboard", purge_step=next_step, flush_secs=_SECONDS)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()
