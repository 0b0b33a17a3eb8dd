"""How the C++ kernel comes to a machine: compiled on first use, or ahead with the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
ATTEND = """
import torch
from multicoco_kernels import BufferPool, KeyMask, LayerCache, cached_attention, cpu, first_handle

x = torch.randn(1, 2, 3, 8)
cache = LayerCache(x, KeyMask(torch.ones(1, 3, dtype=torch.bool)), BufferPool())
out, _ = cached_attention(x, x, x, first_handle(x.device), cache, 0, 1.0, "cpu")
expected = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True, scale=1.0)
torch.testing.assert_close(out, expected)
print(cpu._extension().__file__)
"""


def attend(packages: Path, extensions: Path) -> tuple[Path, str]:
    """Runs the kernel in a new process whose path holds a compiler but not the virtual environment's programs.

    Returns: the file of the compiled kernel, and what was printed to stderr.
    """
    environment = os.environ | {
        "PYTHONPATH": str(packages),
        "TORCH_EXTENSIONS_DIR": str(extensions),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }
    done = subprocess.run([sys.executable, "-c", ATTEND], env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.distributed
def test_it_is_compiled_on_first_use_and_found_on_the_second(tmp_path):
    library, said = attend(ROOT / "kernels", tmp_path)
    assert library.is_relative_to(tmp_path) and said.count("compiling cached_attention.cpp") == 1
    [kept] = tmp_path.iterdir()  # and nothing of the build
    library, said = attend(ROOT / "kernels", tmp_path)
    assert library == kept and "compiling" not in said


BUILD_WHEEL = """
import importlib.util
import sys
import setuptools.build_meta

assert importlib.util.find_spec("torch") is None
print(setuptools.build_meta.build_wheel(sys.argv[1]))
"""


@pytest.mark.distributed
def test_it_can_be_built_ahead_with_the_package(tmp_path):
    """As `pip install .` builds: it hides all that is installed and puts setuptools in a folder beside it."""
    copy, isolated = tmp_path / "source", tmp_path / "isolated"  # a build leaves files behind
    for folder in ("multicoco", "kernels"):
        shutil.copytree(ROOT / folder, copy / folder)
    for file in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, copy)
    isolated.mkdir()
    (isolated / "setuptools").symlink_to(Path(setuptools.__file__).parent)
    (isolated / "sitecustomize.py").write_text(
        "import sys, sysconfig\nsys.path.remove(sysconfig.get_path('purelib'))\n"
    )
    environment = os.environ | {"MULTICOCO_BUILD_OPS": "1", "PYTHONPATH": str(isolated)}
    command = [sys.executable, "-c", BUILD_WHEEL, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = tmp_path / done.stdout.splitlines()[-1]
    install = ["pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "packages"), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True)
    library, said = attend(tmp_path / "packages", tmp_path / "extensions")
    assert library.parent == tmp_path / "packages" / "multicoco_kernels" and "compiling" not in said
