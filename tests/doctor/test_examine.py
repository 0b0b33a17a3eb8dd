"""The whole command over hosts that are all this machine. About 40 s."""

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from doctor.fake_cluster import (
    NEVER_ANSWERS,
    UNREACHABLE,
    WITHOUT_PYTHON,
    FakeCluster,
    elsewhere,
    other_torch,
    wrong_clock,
)
from homes import make_home

from multicoco.cli import main
from multicoco.doctor import hosts
from multicoco.doctor.checks import Row
from multicoco.doctor.examine import format_table

HERE = ("data_dir=scenes", "output_dir=deep/runs", "model_id=model", "image_dir=scenes")  # relative: to each host's own
needs_pdsh = pytest.mark.skipif(shutil.which("pdsh") is None, reason="needs pdsh")


@pytest.fixture(scope="module")
def made_home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("doctor") / "home", 4, 2, "mode: cot_train\n")


@pytest.fixture
def home(made_home, monkeypatch) -> Path:
    monkeypatch.chdir(made_home)
    return made_home


def doctor(*arguments: str, settings: tuple[str, ...] = HERE) -> int:
    return main(["doctor", "run.yaml", *arguments, *(part for s in settings for part in ("--set", s))])


def files(home: Path) -> set[Path]:
    return set(home.rglob("*"))


def remedies(table: str) -> dict[tuple[str, str], str]:
    """The remedy below every line that has one."""
    return {line: after for line, after in pairwise(table.splitlines()) if "-> " in after}


@pytest.mark.distributed
def test_one_machine_without_gpus_passes_with_a_warning(home, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = files(home)
    assert doctor() == 0
    table = capfd.readouterr().out
    assert "warning  GPUs" in table and "a run on CPUs" in table and "FAIL" not in table
    assert "one rank: nothing to measure" in table
    assert files(home) == before


@needs_pdsh
@pytest.mark.distributed
def test_two_good_hosts_pass_and_nothing_is_left_on_them(home, tmp_path, capfd, monkeypatch):
    cluster = FakeCluster(tmp_path, one="", two="echo welcome")
    cluster.join(monkeypatch)
    before = files(home)
    assert doctor("--hostfile", str(cluster.hostfile)) == 0
    table = capfd.readouterr().out
    assert "FAIL" not in table
    for check in ("reachable", "clock", "versions", "inputs", "output", "space"):
        assert f"\nok       {check} " in table
    assert "GB/s bus bandwidth, 2 ranks" in table
    assert "deep/runs/run, writable and shared" in table
    assert files(home) == before


@pytest.mark.distributed
def test_every_ailing_host_gets_its_remedy(home, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(hosts, "CONTACT_SECONDS", 4)
    other, empty = tmp_path / "other_home", tmp_path / "empty_home"
    shutil.copytree(home, other)
    (other / "scenes" / "aokvqa_v1p0_train.json").write_text("[]")
    (other / "scenes" / "aokvqa_v1p0_val.json").unlink()
    shutil.rmtree(other / "model")
    with (other / "run.yaml").open("a") as config:
        config.write("seed: 7\n")
    empty.mkdir()
    cluster = FakeCluster(
        tmp_path,
        good="",
        gone=UNREACHABLE,
        mute=NEVER_ANSWERS,
        bare=WITHOUT_PYTHON,
        stale=f"{other_torch(tmp_path)}\n{wrong_clock(tmp_path)}",
        apart=elsewhere(home, other),
        blank=elsewhere(home, empty),
        lost=elsewhere(home, tmp_path / "not_there"),
    )
    cluster.join(monkeypatch)
    before = files(home) | files(other)
    assert doctor("--hostfile", str(cluster.hostfile)) == 1
    captured = capfd.readouterr()
    found = remedies(captured.out)

    def remedy(*words: str) -> str:
        lines = [line for line in found if all(word in line for word in ("FAIL", *words))]
        assert len(lines) == 1, f"{words}\n{captured.out}"
        return found[lines[0]]

    assert "authorized_keys" in remedy("reachable", "gone", "Connection refused")
    assert "BatchMode=yes mute" in remedy("reachable", "mute", "no answer in 4 s")
    assert "same folder and python" in remedy("reachable", "bare", "has no python")
    assert "same folder and python" in remedy("reachable", "lost", "has no folder")
    assert "at the same paths" in remedy("reachable", "blank", "run.yaml: cannot be read")
    assert "pip install torch==" in remedy("versions", "stale", "torch 99.0, good has")
    assert "chrony" in remedy("clock", "stale", "s from good")
    assert "copy it from good" in remedy("inputs", "apart", "train_path: another content than on good")
    assert "copy it from good" in remedy("inputs", "apart", "config: another content than on good")
    assert "copy it from good" in remedy("inputs", "apart", "model_id: model is missing, good has it")
    assert "mount the share" in remedy("inputs", "apart", "val_path", "cannot be read")
    assert "a file system that all hosts mount" in remedy("output", "apart", "what good, stale writes there")
    assert "skipped" in captured.out and "needs every host" in captured.out
    assert "checks failed, see above" in captured.err and "Traceback" not in captured.err
    assert files(home) | files(other) == before


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ("max_grad_norm=2", "deepspeed=clash.json", "model_id=./nowhere"),
            ("gradient_clipping is 0.5, but max_grad_norm", "make it first, or correct the path"),
        ),
        (
            ("model_id=some/model", "load_model_path=some/run"),
            ("download the model first", "load_model_path: no folder some/run", "a folder must be made first"),
        ),
    ],
)
def test_what_one_machine_lacks_gets_its_remedy(home, capfd, monkeypatch, settings, expected):
    monkeypatch.setattr("multicoco.doctor.examine.check_bandwidth", lambda *_: Row("all_reduce", "all ranks", "ok", ""))
    Path("clash.json").write_text('{"gradient_clipping": 0.5}')
    code = doctor(settings=(*HERE, *settings))
    table = capfd.readouterr().out
    assert all(remedy in table for remedy in expected) and code == (1 if "FAIL" in table else 0)


def test_mistakes_get_one_message(home, capfd, monkeypatch):
    monkeypatch.setenv("HOME", "/nobody")
    monkeypatch.setenv("CLUSTER", "/nowhere")
    assert doctor(settings=("num_epoch=1",)) == 1
    for path in ("none", "~/none", "$CLUSTER/none"):
        assert doctor("--hostfile", path) == 1
    said = capfd.readouterr().err
    assert "did you mean num_epochs?" in said and "Traceback" not in said
    for path in ("none", "/nobody/none", "/nowhere/none"):
        assert f"hostfile {path} cannot be read" in said


def test_hosts_share_a_line_where_the_same_is_to_be_said():
    rows = [Row("reachable", name, "ok", "fine") for name in ("one", "two")]
    rows += [Row("clock", "one", "FAIL", "late", "wind it up"), Row("clock", "two", "FAIL", "late", "wind it up")]
    rows += [Row("GPUs", "two", "ok", "8")]
    assert format_table(rows).splitlines() == [
        "result  check      host   found",
        "ok      reachable  all 2  fine",
        "FAIL    clock      all 2  late",
        "                          -> wind it up",
        "ok      GPUs       two    8",
    ]
