"""Imports run one way: the contracts are in pyproject.toml."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def check(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": f"{folder}:kernels"})


def test_they_do():
    done = check(ROOT)
    assert done.returncode == 0, done.stdout


def test_one_that_runs_upwards_is_found(tmp_path):
    for name in ("multicoco", "kernels", "pyproject.toml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    with (tmp_path / "multicoco" / "data" / "prompt.py").open("a") as file:
        print("from multicoco.evaluation import answers", file=file)
    done = check(tmp_path)
    assert done.returncode == 1 and "multicoco.data.prompt -> multicoco.evaluation.answers" in done.stdout
