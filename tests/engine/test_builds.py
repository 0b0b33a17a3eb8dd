import os
import shutil
import socket
import sys
from pathlib import Path

import ninja

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
