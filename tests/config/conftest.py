from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from multicoco.config import load_config
from multicoco.errors import UserError

MINIMAL = {"mode": "cot_train", "name": "x", "model_id": "m", "train_path": "t.json"}


@pytest.fixture
def minimal() -> dict:
    """The content of the shortest run config."""
    return dict(MINIMAL)


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Writes the shortest run config with more keys, or with more YAML below it."""

    def write_run(more: dict | str = "", name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_dump(MINIMAL) + more if isinstance(more, str) else yaml.safe_dump(MINIMAL | more)
        path.write_text(content, encoding="utf-8")
        return path

    return write_run


@pytest.fixture
def run(write) -> Path:
    return write()


@pytest.fixture
def error() -> Callable[..., str]:
    """The message with which a run config is refused."""

    def refused(path: Path | str, *overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            load_config(path, overrides)
        return str(caught.value)

    return refused
