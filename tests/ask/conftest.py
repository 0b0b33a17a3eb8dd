from pathlib import Path

import pytest
from homes import make_trained_home

import multicoco
from multicoco.ask.asker import Asker
from multicoco.data.example import Example
from multicoco.data.sources import load_examples


@pytest.fixture(scope="package")
def home(tmp_path_factory) -> Path:
    """A run folder, runs/run, with a checkpoint of stage 2, and the data that it was trained on."""
    return make_trained_home(tmp_path_factory.mktemp("ask"))


@pytest.fixture(scope="module")
def asker(home, one_thread) -> Asker:
    return multicoco.load(home / "runs" / "run")


@pytest.fixture(scope="package")
def example(home) -> Example:
    return load_examples(home / "scenes" / "aokvqa_v1p0_val.json", home / "scenes")[0]
