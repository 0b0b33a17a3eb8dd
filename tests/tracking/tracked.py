"""What tests of trackers have in common."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from multicoco.config import RunConfig

SUMMARY = {"mode": "cot", "accuracy": 0.5, "n": 2, "ci95": [0.1, 0.9], "chance": None, "seconds": 1.0}


def run_config(**fields) -> RunConfig:
    return RunConfig(mode="cot_train", name="x", model_id="m", train_path="t", **fields)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """{name: [(step, value)]} as TensorBoard's own reader has it."""
    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    names = reader.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in names}
