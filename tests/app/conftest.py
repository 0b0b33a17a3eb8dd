import shutil
from pathlib import Path

import pytest
from homes import make_trained_home

import multicoco
from multicoco.app.examples import read_examples
from multicoco.app.server import prepare
from multicoco.ask.asker import Asker
from multicoco.data.example import Example


@pytest.fixture(scope="package")
def home(tmp_path_factory) -> Path:
    """A run folder, runs/run, with a checkpoint of stage 2, and the data that it was trained on."""
    return make_trained_home(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def asker(home, one_thread) -> Asker:
    return multicoco.load(home / "runs" / "run")


@pytest.fixture(scope="module")
def examples(asker) -> list[Example]:
    return read_examples(asker, None)


@pytest.fixture(scope="package", autouse=True)
def uploads():
    folder = prepare()
    yield folder
    shutil.rmtree(folder)
