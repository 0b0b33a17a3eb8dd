import pytest

from multicoco.config import load_config


def test_a_name_that_there_is_not_gets_the_nearest(run, error):
    assert "did you mean coconut?" in error(run, "mode=train", "method=cocnut")
    assert "there are" in error(run, "mode=train", "method=zzz")
    assert "did you mean records?" in error(run, "source=record")


@pytest.mark.parametrize("name", ["a", "a b", ".a", "a-1.5", "$WHO"])
def test_a_run_has_the_name_of_a_folder(run, name, monkeypatch):
    monkeypatch.setenv("WHO", "me")
    assert load_config(run, [f"name={name}"]).name == name.replace("$WHO", "me")


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a\\b", "$NOBODY_AT_ALL"])
def test_and_of_no_other(run, error, name):
    assert "name" in error(run, f"name={name}")
