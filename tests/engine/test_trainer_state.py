"""A checkpoint's state that is damaged is named, with its file, in one message."""

import json
import re

import pytest

from multicoco.engine.trainer_state import TrainerState, read_state
from multicoco.errors import UserError

WHOLE = {"epoch": 2, "stage": 0, "step": 20, "accuracy": 1, "data": {"train_path": "ab"}, "ended_early": [1]}


def test_what_is_whole_is_read(tmp_path):
    (tmp_path / "trainer.json").write_text(json.dumps(WHOLE))
    (tmp_path / "evaluation.json").write_text(json.dumps({"accuracy": 0.5}))
    assert read_state(tmp_path) == TrainerState(**WHOLE | {"accuracy": 0.5})


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("trainer.json", {"data": None}),
        ("trainer.json", {"step": "x"}),
        ("trainer.json", {"ended_early": 3}),
        ("trainer.json", {"of_a_later_version": 1}),
        ("evaluation.json", {"accuracy": "good"}),
    ],
)
def test_what_is_not_is_named(tmp_path, file, change):
    (tmp_path / "trainer.json").write_text(json.dumps(WHOLE))
    before = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
    (tmp_path / file).write_text(json.dumps(before | change))
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / file} cannot be read: {next(iter(change))}: ")):
        read_state(tmp_path)
