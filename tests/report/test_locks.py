import os
from pathlib import Path

from multicoco.engine.resume import lock_run_folder
from multicoco.report.locks import owner


def test_a_run_belongs_to_its_process_until_that_ends(tmp_path):
    locked, end = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        held = lock_run_folder(tmp_path)
        os.write(locked[1], b"x")
        os.read(end[0], 1)
        os._exit(held.closed)
    os.read(locked[0], 1)
    assert str(owner(tmp_path)).startswith(f"process {pid} on ")
    os.write(end[1], b"x")
    os.waitpid(pid, 0)
    assert (tmp_path / ".lock").read_text() and owner(tmp_path) is None


def test_the_process_that_asks_is_not_counted(tmp_path):
    with lock_run_folder(tmp_path):
        assert owner(tmp_path) is None
    assert owner(Path("nowhere")) is None


def test_on_another_host_it_runs_as_long_as_it_logs(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on far-away since today\n")
    assert owner(tmp_path) is None
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("")
    assert owner(tmp_path) == "process 1 on far-away since today"
    os.utime(metrics, (1e9, 1e9))
    assert owner(tmp_path) is None
