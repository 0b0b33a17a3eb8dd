import socket
import sys
from types import SimpleNamespace

import pytest

from multicoco.engine.deepspeed import build_engine, free_port, init_distributed
from multicoco.errors import UserError

# what ranks do in place of a run
AGREEMENT = """
from pathlib import Path
from multicoco.engine.deepspeed import init_distributed
from multicoco.engine.ranks import agree
from multicoco.errors import UserError
from multicoco.process import end_process

init_distributed()
said = [f"value {agree(lambda: rank * 10)} {agree(lambda: rank + 7, only_rank_0=True)}"]

def fail():
    if rank == 1:
        raise UserError("rank 1 has no such file")

for only_rank_0 in (False, True):
    try:
        agree(fail, only_rank_0)
        said.append("fine")
    except UserError as error:
        said.append(f"error {error}")
Path(f"rank_{rank}").write_text("\\n".join(said))
end_process(0)
"""


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_device_lacks_is_refused(monkeypatch, precision):
    device = {f"is_{p}_supported": lambda p=p: p != precision for p in ("bf16", "fp16")}
    accelerator = SimpleNamespace(**device, device_name=lambda: "abacus")
    monkeypatch.setattr("multicoco.engine.deepspeed.get_accelerator", lambda: accelerator)
    ds_config = {p: {"enabled": p == precision} for p in ("bf16", "fp16")}
    with pytest.raises(UserError, match=f"{precision}: true, but abacus cannot train in it"):
        build_engine(reasoner=None, config=None, ds_config=ds_config)


def test_ranks_of_mpirun_need_mpi4py(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"started by mpirun, but mpi4py .* pip install mpi4py"):
        init_distributed()


def test_a_port_is_neither_taken_nor_one_that_connections_are_given(monkeypatch):
    port = free_port()
    assert 1024 <= port < 32768  # Linux gives outgoing connections 32768 and up, unless an administrator changed it
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        monkeypatch.setattr("multicoco.engine.deepspeed._PORTS", range(port, port + 1))
        with pytest.raises(UserError, match=f"no port of {port} to {port} is free"):
            free_port()
    assert free_port() == port


@pytest.mark.distributed
def test_a_mistake_that_one_rank_sees_stops_all_of_them(tmp_path, run_server):
    ended = run_server.run(tmp_path / "none.yaml", ranks=2, patch=AGREEMENT)
    assert ended.codes == [0, 0], ended.said
    said = [(tmp_path / f"rank_{rank}").read_text().splitlines() for rank in range(2)]
    assert said == [  # on rank 0 alone there is nothing wrong
        ["value 0 7", "error rank 1 has no such file", "fine"],
        ["value 10 7", "error rank 1 has no such file", "fine"],
    ]
