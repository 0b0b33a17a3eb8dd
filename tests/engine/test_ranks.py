"""Whoever ends first, the reason is out, once: ranks are made slow on purpose, and a bad end ends the others at once.

About 20 s, most of them waiting.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
Ends = Callable[..., dict]


@pytest.fixture(scope="module")
def ends() -> Iterator[Ends]:
    """Runs that end as asked for; see telling_ranks.py."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("telling_ranks.py"))],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end(what: str, slow: tuple[int, ...] = (), ranks: int = 2, kills: bool = True, **other: float) -> dict:
        request = {"what": what, "slow": slow, "ranks": ranks, "kills": kills, **other}
        print(json.dumps(request), file=server.stdin, flush=True)
        while not (answer := server.stdout.readline()).startswith('{"said"'):
            assert answer, "the server has died"
        return json.loads(answer)

    yield end
    server.stdin.close()
    server.wait()


@pytest.mark.parametrize("slow", [(), (0,)], ids=["none slow", "rank 0 slow"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("arguments", "error: unrecognized arguments: --nonsense"),
        ("config", "error: the reason\n"),
        ("construction", "error: the reason\n"),
        ("construction, not agreed on", "error: the reason (rank "),
        ("run", "error: the reason\n"),
        ("preempted", "stopped by a signal"),
    ],
)
def test_what_all_ranks_have_to_say_is_out_once(ends, what, message, slow):
    ended = ends(what, slow)
    assert ended["said"].count(message) == 1 and "Traceback" not in ended["said"], ended
    assert (143 if what == "preempted" else 1) in ended["codes"]


@pytest.mark.parametrize("what", ["construction on rank 1", "run on rank 1"])
def test_what_one_rank_alone_has_to_say_names_it(ends, what):
    ended = ends(what)
    assert ended["said"].count("error: the reason (rank 1 on ") == 1 and ended["codes"][1] == 1


@pytest.mark.parametrize(("what", "code"), [("construction", 1), ("run", 1), ("preempted", 143)])
def test_all_come_to_their_end_where_nobody_ends_them(ends, what, code):
    ended = ends(what, slow=(2,), ranks=3, kills=False)
    assert ended["codes"] == [code] * 3 and ended["seconds"] < 4
    assert ended["said"].count("the reason") + ended["said"].count("stopped by") == 1


def test_when_rank_0_has_died_another_says_it_and_nobody_hangs(ends):
    ended = ends("rank 0 dies", slow=(1,), kills=False)
    assert ended["codes"] == [9, 1] and ended["seconds"] < 10
    assert ended["said"].count("error: the reason\n") == 1


def test_a_mistake_that_is_on_one_host_alone_is_said_when_rank_0_goes_on(ends):
    ended = ends("config on rank 1")
    assert ended["said"].count("error: the reason (rank 1 on ") == 1 and ended["seconds"] < 10


def test_others_leave_in_time_where_rank_0_does_not_end_them(ends):
    ended = ends("config", kills=False, linger=1)
    assert ended["codes"] == [1, 1] and 1 < ended["seconds"] < 4
    assert ended["said"].count("error: the reason") == 1
