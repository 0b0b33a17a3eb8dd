import os
from pathlib import Path

import pytest

from multicoco.config.section import expand


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/mnt/data")
    monkeypatch.setenv("NESTED", "$DATA/inner")
    monkeypatch.setenv("HOMELY", "~/inner")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("CIRCLE", "${CIRCLE}")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("written", "expanded"),
    [
        ("~", "/home/me"),
        ("~/runs", "/home/me/runs"),
        ("$DATA", "/mnt/data"),
        ("$DATA/x", "/mnt/data/x"),
        ("${DATA}_2/x", "/mnt/data_2/x"),
        ("a/$DATA", "a//mnt/data"),
        ("$NESTED/x", "/mnt/data/inner/x"),
        ("$HOMELY/x", "/home/me/inner/x"),
        ("~root", Path("~root").expanduser().as_posix()),
        ("runs", "runs"),
        ("org/model", "org/model"),
        ("./~", "./~"),
        ("a~b/~", "a~b/~"),
        ("100$/x", "100$/x"),
        ("$", "$"),
        ("é ü", "é ü"),
        ("", ""),
    ],
)
def test_a_path_becomes_what_a_shell_makes_of_it_and_stays_so(written, expanded):
    assert expand(written) == expanded
    assert expand(expanded) == expanded


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("$UNSET/x", "UNSET is not set"),
        ("${UNSET}", "UNSET is not set"),
        ("$DATA_2/x", "DATA_2 is not set"),
        ("$EMPTY/x", "EMPTY is not set"),
        ("$CIRCLE", "lead back to themselves"),
        ("~nobody_of_that_name/x", "no user 'nobody_of_that_name'"),
        ("~+", "no user '+'"),
        ("${DATA:-x}", "only $NAME"),
        ("$(pwd)/x", "only $NAME"),
        ("`pwd`", "only $NAME"),
        (" ~/x", "space"),
        ("x\n", "space"),
        ("a\0b", "null character"),
    ],
)
def test_what_would_make_a_folder_of_that_name_is_refused(written, named):
    with pytest.raises(ValueError, match=named.replace("$", r"\$").replace("+", r"\+")):
        expand(written)


def test_nothing_is_looked_up_for_an_ordinary_path(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    assert expand("data/aokvqa") == "data/aokvqa"
