import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from multicoco.data.example import Example
from multicoco.data.sources import load_examples


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Example]]:
    """Loads records as a file of them; the image folder holds a.png and b.png."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)

    def call(*records: Any, **options: Any) -> list[Example]:
        path = tmp_path / "f.json"
        path.write_text(json.dumps(records), encoding="utf-8")
        return load_examples(path, tmp_path, **options)

    return call
