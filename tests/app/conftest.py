import shutil

import pytest

from multicoco.app.examples import read_examples
from multicoco.app.server import prepare
from multicoco.data.example import Example


@pytest.fixture(scope="module")
def examples(asker) -> list[Example]:
    return read_examples(asker, None)


@pytest.fixture(scope="package", autouse=True)
def uploads():
    folder = prepare()
    yield folder
    shutil.rmtree(folder)
