import json
import shutil

import pytest

import multicoco
from multicoco.app.examples import read_examples
from multicoco.errors import UserError


def test_they_are_the_runs_own_or_those_of_a_file(asker, examples, trained_home, tmp_path):
    assert len(examples) == 6 and examples[0].images[0].exists()
    shutil.copy(examples[0].images[0], tmp_path / "mine.png")
    records = [{"question": "Mine?", "choices": ["a", "b"], "answer": "a", "image": "mine.png"}] * 30
    several = [{"role": role, "content": "So?"} for role in ("user", "assistant", "user")]
    records.insert(0, {"messages": several})  # which has no place on the page
    (tmp_path / "mine.json").write_text(json.dumps(records))
    mine = read_examples(asker, tmp_path / "mine.json")
    assert len(mine) == 23 and mine[0].question == "Mine?" and mine[0].images == (tmp_path / "mine.png",)
    assert read_examples(multicoco.load(trained_home / "model"), None) == []  # of no run


def test_those_of_the_run_may_be_gone_but_not_those_that_are_named(asker, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(asker, "config", asker.config.model_copy(update={"data_dir": "gone"}))
    assert read_examples(asker, None) == []
    assert "gone/aokvqa_v1p0_val.json" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"none\.json"):
        read_examples(asker, tmp_path / "none.json")
