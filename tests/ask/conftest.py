import pytest

from multicoco.data.example import Example
from multicoco.data.sources import load_examples


@pytest.fixture(scope="package")
def example(trained_home) -> Example:
    return load_examples(trained_home / "scenes" / "aokvqa_v1p0_val.json", trained_home / "scenes")[0]
