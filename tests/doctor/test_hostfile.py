from pathlib import Path

import pytest

from multicoco.doctor.hostfile import read_hostfile
from multicoco.errors import UserError


def test_hosts_keep_their_order_and_comments_are_passed_over(tmp_path):
    (tmp_path / "hosts").write_text("# a cluster\n\nb slots=8\n  a.example.org   slots=2  # small\n#c slots=1\n")
    assert list(read_hostfile(tmp_path / "hosts").items()) == [("b", 8), ("a.example.org", 2)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a slots=2\nb\n", ":2: 'b' is no host"),
        ("a slots=x\n", ":1: 'a slots=x' is no host"),
        ("a slots=0\n", ":1: 'a slots=0' is no host"),
        ("a slots=2 b slots=2\n", ":1: 'a slots=2 b slots=2' is no host"),
        ("a slots=2\n\na slots=1\n", ":3: a stands twice"),
        ("# nothing\n", ": names no host"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, text, expected):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError) as raised:
        read_hostfile(tmp_path / "hosts")
    assert str(raised.value).startswith(str(tmp_path / "hosts") + expected)


def test_the_example_in_the_repository_names_no_host_until_it_is_edited():
    with pytest.raises(UserError, match="names no host"):
        read_hostfile(Path(__file__).parents[2] / "hostfile")
