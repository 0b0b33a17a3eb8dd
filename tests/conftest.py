import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from runs import RunServer

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is first imported; no test waits for a network
if not torch.cuda.is_available():  # before Triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("any machine", deadline=None)  # none fails because the machine is busy
settings.load_profile("any machine")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For models so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sshd() -> str:
    """OpenSSH's server, with the directory that it demands of root and that only a booting system makes."""
    path = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or pytest.skip("sshd is not installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def run_server(tmp_path_factory) -> Iterator[RunServer]:
    """Does whole runs without a launcher, each by processes of its own."""
    server = RunServer(tmp_path_factory.mktemp("run_server"))
    yield server
    server.stop()
