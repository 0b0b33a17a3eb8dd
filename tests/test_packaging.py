"""What is installed: everything that the packages consist of, and it works away from the checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import yaml
from homes import REPO

from multicoco import __version__

PACKAGES = {"multicoco": REPO / "multicoco", "multicoco_kernels": REPO / "kernels" / "multicoco_kernels"}
BUILD = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    left_out = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("multicoco", "kernels"):
        shutil.copytree(REPO / name, copy / name, ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, copy)
    command = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_every_file_of_the_packages_is_in_it_and_nothing_else(wheel):
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert {"multicoco/py.typed", "multicoco_kernels/py.typed", "multicoco_kernels/csrc/cached_attention.cpp"} <= packed


def test_its_metadata_says_what_it_is(metadata):
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Author"] and metadata["Summary"] and metadata["Requires-Python"] == ">=3.11"


def test_every_version_that_is_pinned_is_of_a_package_that_is_asked_for(metadata):
    pinned = {line.split("==")[0] for line in (REPO / "constraints.txt").read_text().splitlines() if "==" in line}
    asked = {re.split(r"[^\w.-]", required)[0] for required in metadata.get_all("Requires-Dist")}
    assert {name.lower() for name in pinned} == {name.lower() for name in asked - {"flash-attn"}}


@pytest.mark.distributed
def test_the_command_works_outside_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "packages")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "packages")}

    def multicoco(*arguments: str) -> str:
        command = [sys.executable, "-m", "multicoco.cli", *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [sys.executable, "-c", "import multicoco, multicoco_kernels as k; print(multicoco.__file__, k.__file__)"]
    files = subprocess.run(where, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert all(Path(file).is_relative_to(tmp_path / "packages") for file in files.split())
    assert "prepare" in multicoco("--help")
    multicoco("prepare", "scenes", "--out", "scenes", "--train", "2", "--val", "1", "--test", "1")
    assert (tmp_path / "scenes" / "aokvqa_v1p0_train.json").is_file()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == __version__
    assert citation["license"] == "Apache-2.0" and citation["message"] and citation["title"] and citation["authors"]


def test_the_changelog_begins_with_what_is_not_released_yet():
    headings = [line for line in (REPO / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
