import shutil
import subprocess
from pathlib import Path

import pytest
from deepspeed.launcher.runner import _parse_hostfile

from multicoco.doctor.hostfile import read_hostfile
from multicoco.errors import UserError

TAKEN = {
    "b slots=8": ("b", 8),
    "  a.example.org   slots=2  # small": ("a.example.org", 2),
    "a\tslots=2\t": ("a", 2),
    "a slots=2#small": ("a", 2),
    "a slots=2\r": ("a", 2),
    "me@10.0.0.1 slots=02": ("me@10.0.0.1", 2),
    "a slots=2 max_slots=2": ("a", 2),
    "a slots=2 max-slots=4  # oversubscribed": ("a", 2),
}


@pytest.mark.parametrize("line", TAKEN)
def test_an_entry_is_read_as_deepspeed_reads_it(tmp_path, line):
    (tmp_path / "hosts").write_text(f"# a cluster\n\n{line}\n")
    assert list(read_hostfile(tmp_path / "hosts").items()) == [TAKEN[line]]
    assert list(_parse_hostfile([line]).items()) == [TAKEN[line]]


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs OpenMPI")
def test_openmpi_takes_what_is_taken(tmp_path):
    """mpirun gets the same file from `deepspeed --launcher openmpi`."""
    lines = [line.replace(name, "localhost", 1) for line, (name, _) in TAKEN.items()]
    for line in map(str.rstrip, lines):  # with the line ends of Windows, DeepSpeed's other launchers only
        (tmp_path / "hosts").write_text(f"# a cluster\n\n{line}\n")
        command = ["mpirun", "--allow-run-as-root", "-n", "2", "-hostfile", str(tmp_path / "hosts"), "echo", "here"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == ["here"] * 2, line + done.stderr


def test_hosts_keep_their_order_and_comments_are_passed_over(tmp_path):
    (tmp_path / "hosts").write_text("# a cluster\n\nb slots=8\n  a.example.org   slots=2  # small\n#c slots=1\n")
    assert list(read_hostfile(tmp_path / "hosts").items()) == [("b", 8), ("a.example.org", 2)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a slots=2\nb\n", ":2: 'b' is no host"),
        ("a slots=x\n", ":1: 'a slots=x' is no host"),
        ("a slots=0\n", ":1: 'a slots=0' is no host"),
        ("a slots=-1\n", ":1: 'a slots=-1' is no host"),
        ("a slots=2 b slots=2\n", ":1: 'a slots=2 b slots=2' is no host"),
        ("a slots=2 slots=3\n", ":1: 'a slots=2 slots=3' is no host"),
        ("a slots=2,\n", ":1: 'a slots=2,' is no host"),
        ("a slots=2 port=22\n", ":1: 'a slots=2 port=22' is no host"),
        ("a slots = 2\n", ":1: 'a slots = 2' is no host"),
        ("a max_slots=2 slots=2\n", ":1: 'a max_slots=2 slots=2' is no host"),
        ("a slots=2 max_slots=1\n", ":1: 'a slots=2 max_slots=1' has more slots than max_slots"),
        (
            "a slots=2\nb:4\n",
            ":2: 'b:4' is MPICH's form, which DeepSpeed reads for no launcher: write it as `b slots=4`",
        ),
        ("\ufeffa slots=2\n", ":1: starts with a byte-order mark"),
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
