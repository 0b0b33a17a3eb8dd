"""What a run leaves to read, and where else its numbers go.

machine.py     what a run ran on
tracker.py     `Tracker`, by which a run tells what it does; sinks, to which it passes that on:
sink.py        what one is asked for
folder.py      the run folder: metrics.jsonl, samples, evaluations, config, environment
wandb.py       Weights & Biases
tensorboard.py TensorBoard
"""

from multicoco.tracking.machine import environment
from multicoco.tracking.tracker import Tracker

__all__ = ["Tracker", "environment"]
