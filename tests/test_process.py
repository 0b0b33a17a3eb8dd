import os
import subprocess
import sys

import pytest

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
