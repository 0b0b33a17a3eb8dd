"""The judgements on facts as hosts report them; those that need a whole cluster are in test_examine."""

import pytest

from multicoco.config import RunConfig
from multicoco.doctor.checks import check_clocks, check_gpus, check_output, check_space, check_versions
from multicoco.doctor.hosts import Host
from multicoco.doctor.probe import Token
from multicoco.doctor.space import ModelSize

GB = 10**9


def host(name: str, slots: int | None = 4, seen: tuple[str, ...] = (), **facts) -> Host:
    return Host(name, slots, is_remote=True, facts=facts, seen=list(seen))


def output(**changes) -> dict:
    return {"folder": "/runs/run", "error": None, "made": [], "free": 100 * GB, "held": 0} | changes


@pytest.mark.parametrize(
    ("gpus", "results", "remedy"),
    [
        ((4, 8), ["ok", "ok"], None),
        ((4, 2), ["ok", "FAIL"], "write slots=2"),
        ((4, 0), ["ok", "FAIL"], "nvidia-smi"),
        ((0, 0), ["warning", "warning"], "CUDA build"),
    ],
)
def test_every_slot_needs_a_gpu_unless_no_host_has_any(gpus, results, remedy):
    rows = list(check_gpus([host("a", gpus=gpus[0]), host("b", gpus=gpus[1])]))
    assert [row.result for row in rows] == results
    assert remedy is None or remedy in rows[1].remedy


@pytest.mark.parametrize(
    ("late", "error", "result"), [(4.9, 0.1, "ok"), (6, 0.1, "FAIL"), (-6, 0.1, "FAIL"), (6, 2, "ok")]
)
def test_a_clock_is_wrong_only_beyond_what_the_way_there_explains(late, error, result):
    first, second = host("a"), host("b")
    second.clock, second.clock_error = late, error
    [row] = check_clocks([first, second])
    assert row.result == result and ("chrony" in row.remedy) == (result == "FAIL")


@pytest.mark.parametrize(
    ("name", "remedy"), [("torch", "pip install torch==1"), ("multicoco source", "the same multicoco as a")]
)
def test_another_version_is_named_with_the_first_host_s(name, remedy):
    same = {"python": "3", "torch": "1", "multicoco source": "1"}
    rows = list(check_versions([host("a", versions=same), host("b", versions=same | {name: "2"})]))
    assert [row.result for row in rows] == ["ok", "FAIL"]
    assert rows[1].found == f"{name} 2, a has 1" and remedy in rows[1].remedy


def test_a_run_folder_that_cannot_be_written_or_is_not_shared_fails(tmp_path):
    (tmp_path / "runs").write_text("in the way")
    token = Token(tmp_path / "runs" / "run", "token")
    hosts = [
        host("a", seen=("a", "b"), output=output()),
        host("b", seen=("b",), output=output()),
        host("c", output=output(error=token.room()["error"])),
    ]
    rows = list(check_output(hosts))
    assert [row.result for row in rows] == ["ok", "FAIL", "FAIL"]
    assert "what a writes there is not seen" in rows[1].found and "all hosts mount" in rows[1].remedy
    assert "cannot write" in rows[2].found and "another output_dir" in rows[2].remedy


@pytest.mark.parametrize(
    ("free", "held", "settings", "result"),
    [
        (69, 0, {}, "FAIL"),  # 3 newest, the best and the one being written, of 14 GB
        (71, 0, {}, "ok"),
        (41, 28, {}, "FAIL"),
        (43, 28, {}, "ok"),
        (57, 0, {"max_checkpoints_to_keep": 2}, "ok"),
        (15, 0, {"num_epochs": 1}, "ok"),
        (15, 0, {"num_epochs": 1, "save_every_steps": 5}, "FAIL"),
    ],
)
def test_the_checkpoints_need_room(free, held, settings, result):
    config = RunConfig(mode="cot_train", name="run", model_id="model", train_path="t", **{"num_epochs": 9} | settings)
    size = ModelSize(parameters=GB, trainable=GB // 2)  # 4 + 4 bytes of weights, 12 / 2 of the optimizer
    hosts = [host("a", output=output()), host("b", output=output(free=free * GB, held=held * GB))]
    row = check_space(hosts, config, size, zero_stage=2)
    assert (row.host, row.result) == ("b", result) and ("make room" in row.remedy) == (result == "FAIL")
