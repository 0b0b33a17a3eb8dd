import os
import subprocess
import sys

import pytest

from multicoco import process
from multicoco.process import environment_rank, say_before_meeting

REDUCE_AND_END = """
import atexit
import sys
import torch
import torch.distributed as dist
from multicoco.process import end_process

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
kept = dist.group.WORLD
for _ in range(30):
    for x in [torch.ones(1000) for _ in range(50)]:
        dist.all_reduce(x)
atexit.register(print, "exit handlers ran")
end_process(7)
"""


@pytest.mark.distributed
@pytest.mark.parametrize("attempt", range(4))
def test_a_process_ends_with_its_code_while_gloo_holds_tensors(tmp_path, attempt):
    """With sys.exit, one of two ranks aborts (-6) more often than not."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", REDUCE_AND_END, str(tmp_path / "meeting"), str(rank)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [rank.communicate(timeout=120)[0] for rank in ranks] == ["exit handlers ran\n"] * 2
    assert [rank.returncode for rank in ranks] == [7, 7]


@pytest.mark.parametrize(
    ("environment", "rank"), [({}, 0), ({"RANK": "3"}, 3), ({"OMPI_COMM_WORLD_RANK": "2"}, 2)], ids=str
)
def test_every_launcher_s_rank_is_known_before_the_ranks_meet(monkeypatch, environment, rank):
    for name in ("RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert environment_rank() == rank


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"RANK": "0"}, "wrong\n"), ({"RANK": "1"}, ""), ({"RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, "wrong (rank 1 on")],
    ids=["rank 0", "another", "another under torchrun, which would have ended it after rank 0"],
)
def test_before_the_ranks_meet_the_others_leave_it_to_rank_0(monkeypatch, capsys, environment, said):
    monkeypatch.setattr(process, "LINGER_SECONDS", 0.1)
    for name, value in (environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}).items():
        monkeypatch.setenv(name, value)
    say_before_meeting("wrong")
    heard = capsys.readouterr().err
    assert heard.startswith(said) and heard.count("wrong") == (said != "")
