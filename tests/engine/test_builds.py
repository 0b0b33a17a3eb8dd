import os
import socket
from pathlib import Path

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
