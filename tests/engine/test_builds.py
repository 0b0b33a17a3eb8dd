import os
import shutil
import socket
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


def test_it_is_always_this_environments_ninja_that_builds(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    other = tmp_path / "ninja"
    other.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    prepare_builds()
    prepare_builds()
    assert Path(shutil.which("ninja")).parent == Path(ninja.BIN_DIR)
    assert os.environ["PATH"].split(":")[1:] == [str(tmp_path), "/usr/bin", "/bin"]
