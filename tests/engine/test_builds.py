import os
import shutil
import socket
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import ninja
from torch.utils.file_baton import FileBaton

from multicoco.engine.builds import prepare_builds


def test_guards_that_no_process_holds_are_removed_and_others_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    prepare_builds()
    root = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    assert root.is_relative_to(tmp_path / socket.gethostname())
    abandoned, held = root / "one" / "lock", root / "two" / "lock"
    for guard in (abandoned, held):
        guard.parent.mkdir(parents=True)
        guard.touch()
    with held.open():
        prepare_builds()
        assert Path(os.environ["TORCH_EXTENSIONS_DIR"]) == root  # not a level deeper
        assert held.exists() and not abandoned.exists()
    prepare_builds()
    assert not held.exists()


def builds(folder: Path, failures) -> None:
    """A rank that starts again and again, and each time would build, as PyTorch does it."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    ends = time.monotonic() + 1.5
    while time.monotonic() < ends:
        try:
            prepare_builds()
            baton = FileBaton(Path(os.environ["TORCH_EXTENSIONS_DIR"], "operator", "lock"), wait_seconds=0.001)
            if baton.try_acquire():
                baton.release()
            else:
                baton.wait()
        except FileNotFoundError as error:
            failures.put(str(error))


def test_ranks_that_start_together_take_no_guard_of_each_others(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    prepare_builds()
    guard = Path(os.environ["TORCH_EXTENSIONS_DIR"], "operator", "lock")
    guard.parent.mkdir(parents=True)
    guard.touch()  # a killed build's
    fork = get_context("fork")
    failures = fork.SimpleQueue()
    ranks = [fork.Process(target=builds, args=(tmp_path, failures)) for _ in range(6)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=30)
    assert [rank.exitcode for rank in ranks] == [0] * 6
    assert failures.empty(), failures.get()


def test_environments_do_not_take_turns_in_a_folder(tmp_path, monkeypatch):
    found = []
    for prefix in ("/a", "/b", "/a"):
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
        monkeypatch.setattr(sys, "prefix", prefix)
        prepare_builds()
        found.append(os.environ["TORCH_EXTENSIONS_DIR"])
    assert found[0] == found[2] != found[1]


def test_it_is_always_this_environments_ninja_that_builds(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    other = tmp_path / "ninja"
    other.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    prepare_builds()
    prepare_builds()
    assert Path(shutil.which("ninja")).parent == Path(ninja.BIN_DIR)
    assert os.environ["PATH"].split(":")[1:] == [str(tmp_path), "/usr/bin", "/bin"]
