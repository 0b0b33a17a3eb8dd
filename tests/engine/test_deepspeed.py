import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from multicoco.engine.deepspeed import build_engine
from multicoco.errors import UserError

AGREEMENT = """
import os
from multicoco.engine.deepspeed import agree, init_distributed
from multicoco.errors import UserError

rank, world_size = init_distributed()
print(f"value {rank} {agree(lambda: rank * 10)} {agree(lambda: rank + 7, only_rank_0=True)}", flush=True)

def fail():
    if rank == 1:
        raise UserError("rank 1 has no such file")

for only_rank_0 in (False, True):
    try:
        agree(fail, only_rank_0)
        print(f"fine {rank}", flush=True)
    except UserError as error:
        print(f"error {rank} {error}", flush=True)
"""


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_device_lacks_is_refused(monkeypatch, precision):
    device = {f"is_{p}_supported": lambda p=p: p != precision for p in ("bf16", "fp16")}
    accelerator = SimpleNamespace(**device, device_name=lambda: "abacus")
    monkeypatch.setattr("multicoco.engine.deepspeed.get_accelerator", lambda: accelerator)
    ds_config = {p: {"enabled": p == precision} for p in ("bf16", "fp16")}
    with pytest.raises(UserError, match=f"{precision}: true, but abacus cannot train in it"):
        build_engine(reasoner=None, config=None, ds_config=ds_config)


@pytest.mark.distributed
def test_a_mistake_that_one_rank_sees_stops_all_of_them(tmp_path):
    (tmp_path / "worker.py").write_text(AGREEMENT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(tmp_path / "worker.py")], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = sorted(line for line in done.stdout.splitlines() if line.split(" ")[0] in ("value", "error", "fine"))
    assert said == [
        "error 0 rank 1 has no such file",
        "error 1 rank 1 has no such file",
        "fine 0",  # on rank 0 alone there is nothing wrong
        "fine 1",
        "value 0 0 7",
        "value 1 10 7",
    ]
