import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is first imported: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from runs import RunServer

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is first imported; no test waits for a network
if not torch.cuda.is_available():  # before Triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("any machine", deadline=None)  # none fails because the machine is busy
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests start processes come first: they take long, and the last worker ends sooner without them."""
    slow = {item.path for item in items if item.get_closest_marker("distributed")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    gc.freeze()  # all that is imported: a collection, as benchmarks and DeepSpeed ask for, looks through the rest alone


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


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory) -> Path:
    """A folder with a run, runs/run, that has a checkpoint of stage 2, and the data it was trained on; to be read."""
    from homes import make_trained_home  # which most tests do without

    return make_trained_home(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def asker(trained_home, one_thread) -> Any:
    """The run's checkpoint, to be asked."""
    from multicoco import load

    return load(trained_home / "runs" / "run")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None) or pytest.skip("there is no Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
