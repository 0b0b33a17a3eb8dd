import json
from pathlib import Path

import pytest
import yaml

from multicoco.study import runner

HERE = Path(__file__).parent


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study's content in a folder of its own, whose runs are done by fake_train.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "TRAIN", HERE / "fake_train.py")
    monkeypatch.setattr("multicoco.report.at_end.report_at_end", lambda folder: print("report of", folder))
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}")
    base = {
        **{"mode": "vanilla_train", "model_id": "model", "train_path": "train.json", "val_path": "val.json"},
        **{"inherits": None, "name": "base", "lr": 0.2},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    records = [
        {"question": f"Is it {i}?", "steps": ["It is."] * 3, "answer": "yes" if i % 2 else "no"} for i in range(10)
    ]
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero2.json").write_text("{}")
    for name in ("train.json", "other.json", "val.json"):
        (tmp_path / name).write_text(json.dumps(records))
    return {
        **{"name": "tiny", "output_dir": "studies", "config": "base.yaml", "seeds": [0, 1]},
        "arms": {
            "direct": {},
            "hidden": {
                "set": {"lr": 0.9, "num_epochs": 2, "mode": "coconut_train", "coconut.enabled": True},
                "after": "start",
            },
            "start": {"set": {"lr": 0.3}, "differs": ["steps"]},
        },
        "tests": {"val": {"set": {"val_path": "val.json"}}},
    }


@pytest.fixture
def written(study, tmp_path):
    """Writes the study as it is by then; returns the file."""

    def write() -> Path:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        return tmp_path / "study.yaml"

    return write
