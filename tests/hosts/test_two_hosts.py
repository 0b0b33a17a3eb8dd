"""A real `deepspeed --hostfile` launch over two hosts: pdsh, ssh, and a network between them that can be cut.

Tolerance on losses, 1e-4 relative: fp32 sums taken in another order, magnified by AdamW's normalisation step by step.
"""

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from homes import REPO, make_home
from runs import entries
from two_hosts import TwoHosts, missing, two_hosts

from multicoco.engine.manifest import damage

pytestmark = [pytest.mark.distributed, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

LIMIT = 10  # lost_rank_seconds
CONFIG = """
batch_size: 2
num_epochs: 2
warmup_steps: 2
generation: {max_new_tokens: 3}
lost_rank_seconds: 10
save_every_steps: 3
"""
COCONUT = ("mode=coconut_train", "coconut.enabled=true", "coconut.max_latent_stage=2", "num_epochs=3")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, sshd) -> TwoHosts:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def config(hosts) -> Path:
    return make_home(hosts.folder, n_train=16, n_val=4, config=CONFIG) / "run.yaml"


def settings(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def metrics(hosts: TwoHosts, name: str, key: str) -> list:
    found = entries(hosts.folder / "runs" / name)
    return [(entry["train/stage"], entry[key]) for entry in found if key in entry]


def on_two_hosts(hosts: TwoHosts, config: Path, *overrides: str) -> None:
    launched = hosts.launch(config, *settings(*overrides))
    assert launched.wait(timeout=300) == 0, hosts.output()[-4000:]


def train_both_phases(run: Callable, hosts: TwoHosts, config: Path, name: str, *of_coconut: str) -> list:
    """(stage, loss) of every step of CoT, and of Coconut from it."""
    run(hosts, config, "mode=cot_train", f"name={name}_cot")
    start = f"load_model_path={hosts.folder}/runs/{name}_cot"
    run(hosts, config, *COCONUT, f"name={name}_coconut", start, *of_coconut)
    return [pair for phase in ("cot", "coconut") for pair in metrics(hosts, f"{name}_{phase}", "train/loss")]


@pytest.fixture(scope="module")
def single(hosts, config, run_server) -> list:
    def in_one_process(hosts: TwoHosts, config: Path, *overrides: str) -> None:
        ended = run_server.run(config, *overrides, "batch_size=4")
        assert ended.codes == [0], ended.said

    return train_both_phases(in_one_process, hosts, config, "one")


def test_both_phases_over_two_hosts_give_the_losses_of_one_process(hosts, config, single):
    """CoT under ZeRO-2, Coconut under ZeRO-3."""
    two = train_both_phases(on_two_hosts, hosts, config, "two", f"deepspeed={REPO}/ds_configs/zero3.json")
    assert [stage for stage, _ in two] == [stage for stage, _ in single]
    assert {stage for stage, _ in two} == {0, 1, 2, 3}  # CoT, and two transitions
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in single], rel=1e-4)
    run = hosts.folder / "runs" / "two_coconut"
    assert json.loads((run / "evaluation" / "coconut.json").read_text())["n"] == 4
    assert damage(run / "checkpoints" / "epoch_0003") == []


def test_a_study_launches_its_runs_over_two_hosts(hosts, config):
    file = hosts.folder / "study.yaml"
    file.write_text(f"""
name: study
output_dir: studies
config: {config}
seeds: [0]
arms:
  hidden: {{set: {{mode: coconut_train, coconut: {{enabled: true, max_latent_stage: 1}}}}}}
tests:
  val: {{set: {{eval_batch_size: 2}}}}
interventions: [zero, perturb(0)]
""")
    command = [sys.executable, "-m", "multicoco.cli", "study", str(file), "--launcher", shlex.join(hosts.launcher())]
    for started in (2, 0):  # it is trained and evaluated, then there is nothing left to do
        assert hosts.type(*command).wait(timeout=300) == 0, hosts.output()[-4000:]
        assert sum(line.startswith("[") for line in hosts.output().splitlines()) == started
    result = json.loads((hosts.folder / "studies" / "study" / "study.json").read_text())
    assert sorted((run["intervention"], run["n"], run["steps"]) for run in result["runs"]) == [
        (name, 4, 8)  # 16 records, two ranks of 2, two epochs
        for name in ("perturb(0)", "untouched", "zero")
    ]


@pytest.mark.skipif(not (shutil.which("mpirun") and find_spec("mpi4py")), reason="needs OpenMPI and mpi4py")
def test_openmpi_over_two_hosts_gives_the_losses_of_one_process(hosts, config, single):
    arguments = f"--allow-run-as-root --mca plm_rsh_args '-F {hosts.folder}/ssh_config'"
    arguments += "".join(f" --mca {part}_tcp_if_include eth7" for part in ("btl", "oob"))
    launcher = ("--launcher", "openmpi", "--launcher_args", arguments)
    launched = hosts.launch(config, *settings("mode=cot_train", "name=openmpi"), launcher=launcher)
    assert launched.wait(timeout=300) == 0, hosts.output()[-4000:]
    expected = [loss for stage, loss in single if stage == 0]
    assert [loss for _, loss in metrics(hosts, "openmpi", "train/loss")] == pytest.approx(expected, rel=1e-4)


def wait_for_step(hosts: TwoHosts, name: str, step: int) -> None:
    checkpoints, deadline = hosts.folder / "runs" / name / "checkpoints", time.monotonic() + 240
    while not any(checkpoints.glob(f"*step_{step:08d}/manifest.json")):
        assert time.monotonic() < deadline, hosts.output()[-3000:]
        time.sleep(0.1)


@pytest.mark.parametrize("victim", ["process on the second host", "process on the first host", "network"])
def test_the_loss_of_a_host_ends_the_run_everywhere(hosts, config, victim):
    name = f"lost_{victim.replace(' ', '_')}"
    launched = hosts.launch(config, *settings("mode=cot_train", f"name={name}", "num_epochs=1000"))
    wait_for_step(hosts, name, 3)
    lost = 0 if "first" in victim else 1
    started = time.monotonic()
    if victim == "network":
        hosts.set_link(1, "down")
    else:
        for pid in hosts.trainers(lost):
            os.kill(pid, signal.SIGKILL)
    # the watchdog's limit, ssh's own (9 s) and the launcher's 30 s for what ignores its SIGTERM
    code = launched.wait(timeout=LIMIT + 9 + 30 + 30)
    seconds = time.monotonic() - started
    said = [line for line in hosts.output().splitlines() if "has not been heard of" in line]
    assert code != 0 and len(said) == 1, (code, seconds, hosts.output()[-3000:])
    assert f"rank {lost} on {hosts.names[lost]} has not been heard of" in said[0]
    assert "Traceback" not in hosts.output()
    deadline = time.monotonic() + LIMIT + 10
    while any(hosts.trainers(host) for host in (0, 1)):
        assert time.monotonic() < deadline, "a trainer is still running"
        time.sleep(0.5)
    hosts.set_link(1, "up")
    checkpoints = (hosts.folder / "runs" / name / "checkpoints").glob("epoch*")
    whole = [path for path in checkpoints if (path / "manifest.json").exists() and not path.suffix]
    assert whole and all(damage(path) == [] for path in whole)
