"""Launch files and their documentation: what they name exists, and what of them can run on one machine runs.

The launches take about a minute. Nothing here has a GPU, Docker's engine or Slurm.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import train
import yaml
from deepspeed.launcher import runner
from homes import REPO, make_home
from runs import logged
from torch.distributed.run import get_args_parser

from multicoco.cli import parser as multicoco_parser
from multicoco.doctor.hostfile import read_hostfile
from multicoco.engine.deepspeed import free_port

BIN = Path(sys.executable).parent
SCRIPTS = [REPO / "deploy" / "slurm" / "train.sbatch", REPO / "deploy" / "docker" / "entrypoint.sh"]
PAGES = [REPO / "docs" / "launching.md", REPO / "deploy" / "docker" / "README.md", *SCRIPTS]
COMPOSE = REPO / "deploy" / "docker" / "compose.yaml"


def installed(program: str) -> str:
    return shutil.which(program) or pytest.skip(f"{program} is not installed")


class TestFiles:
    @pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
    def test_scripts_are_bash(self, script):
        subprocess.run(["bash", "-n", str(script)], check=True)

    @pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
    def test_scripts_pass_shellcheck(self, script):
        done = subprocess.run([installed("shellcheck"), "--shell=bash", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    def test_the_dockerfile_passes_hadolint(self):
        file = REPO / "deploy" / "docker" / "Dockerfile"
        done = subprocess.run([installed("hadolint"), str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    def test_sshd_takes_its_config(self, tmp_path, sshd):
        key = tmp_path / "key"
        subprocess.run([installed("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        config = REPO / "deploy" / "docker" / "sshd_config"
        subprocess.run([sshd, "-t", "-f", str(config), "-h", str(key)], check=True)

    def test_the_image_holds_no_keys_and_runs_as_an_ordinary_user(self):
        lines = (REPO / "deploy" / "docker" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
        [install] = [line for line in lines if "openssh-server" in line and line.startswith("RUN")]
        assert "rm -f /etc/ssh/ssh_host_*" in install  # in the same layer
        assert [line for line in lines if line.startswith("USER ")][-1] == "USER ${UID}"
        sources = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
        assert all((REPO / source).exists() for source in sources if not source.startswith("--"))

    def test_compose_describes_the_hosts_of_its_hostfile(self):
        services = yaml.safe_load(COMPOSE.read_text())["services"]
        slots = read_hostfile(COMPOSE.with_name("hostfile"))
        assert list(services) == list(slots)
        devices = []
        for name, service in services.items():
            [reserved] = service["deploy"]["resources"]["reservations"]["devices"]
            assert service["hostname"] == name and len(reserved["device_ids"]) == slots[name]
            assert reserved["driver"] == "nvidia" and reserved["capabilities"] == ["gpu"]
            assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert service["shm_size"] and any(volume.endswith(":/keys:ro") for volume in service["volumes"])
            devices += reserved["device_ids"]
        assert len(set(devices)) == len(devices)

    @pytest.mark.parametrize("page", [*PAGES, COMPOSE, COMPOSE.with_name("Dockerfile")], ids=lambda path: path.name)
    def test_what_was_not_run_is_marked(self, page):
        assert "ntested" in page.read_text()


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of a page, from its launcher on, continuation lines joined."""
    text = page.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        words = shlex.split(line.strip(), comments=True) if re.match(r" {4}\S", line) or page in SCRIPTS else []
        for launcher in ("deepspeed", "torchrun", "multicoco", "sbatch"):
            if launcher in words:
                yield words[words.index(launcher) :]
                break


class TestPages:
    @pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda path: path.name)
    def test_every_command_is_one_that_its_program_takes(self, page, monkeypatch):
        found = list(commands(page))
        assert len(found) >= 3
        for words in found:
            launcher, arguments = words[0], words[1:]
            script = arguments
            if launcher == "deepspeed":
                parsed = runner.parse_args(arguments)
                script = [parsed.user_script, *parsed.user_args]
                if page.parent.name == "docker" and "--hostfile" in words:
                    assert read_hostfile(REPO / parsed.hostfile)
            elif launcher == "torchrun":
                parsed = get_args_parser().parse_args(arguments)
                script = [parsed.training_script, *parsed.training_script_args]
            elif launcher == "multicoco":
                assert (REPO / multicoco_parser().parse_args(arguments).config).is_file()
                continue
            assert (REPO / script[0]).is_file()
            monkeypatch.setattr(sys, "argv", ["train.py", *script[1:]])
            assert (REPO / train.parse_args().config).is_file()

    @pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
    def test_every_path_of_the_repository_exists(self, page):
        named = re.findall(r"\b(?:deploy|tests|docs|args|ds_configs)/[\w./-]*\w", page.read_text())
        assert all((REPO / path).exists() for path in named), named


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A checkout to submit from, so to say: train.py, an environment in .venv, data and a config."""
    config = "mode: cot_train\nbatch_size: 2\nnum_epochs: 2\ngeneration: {max_new_tokens: 2}\n"
    home = make_home(tmp_path_factory.mktemp("deploy"), 12, 2, config)
    (home / "train.py").symlink_to(REPO / "train.py")
    activate = home / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"export PATH={BIN}:$PATH\n")
    return home


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"} | variables


def metrics(home: Path, name: str) -> dict[str, list[float]]:
    """The losses by step, and the accuracies."""
    return {key: logged(home / "runs" / name, key) for key in ("train/loss", "train/lr", "eval/cot/accuracy")}


@pytest.fixture(scope="module")
def single_node(home, run_server) -> dict[str, list[float]]:
    """Two processes of one node."""
    ended = run_server.run(home / "run.yaml", "name=single", ranks=2)
    assert ended.codes == [0, 0], ended.said
    return metrics(home, "single")


def assert_equal(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert len(expected["train/loss"]) == 6 and len(expected["eval/cot/accuracy"]) == 2
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, rel=1e-5), key


@pytest.mark.distributed
def test_torchrun_on_two_nodes_trains_like_one(home, single_node):
    port = str(free_port())
    nodes = []
    for rank in range(2):
        static = ["--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1"]
        meeting = ["--master_addr", "127.0.0.1", "--master_port", port]
        command = [str(BIN / "torchrun"), *static, *meeting, "train.py", "run.yaml", "--set", "name=nodes"]
        nodes.append(subprocess.Popen(command, cwd=home, env=environment(), stderr=subprocess.PIPE))
    said = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert_equal(metrics(home, "nodes"), single_node)


_STAND_INS = {
    # what Slurm does with a step: its task once on every node
    "srun": """
[[ $1 == --kill-on-bad-exit=1 ]] && shift
for node in 0 1; do
    SLURM_NODEID=$node "$@" &
    echo $! >> tasks
done
code=0
for task in $(cat tasks); do wait "$task" || code=$?; done
exit "$code"
""",
    "scontrol": """
case "$1 $2" in
    "show hostnames") printf 'localhost\\nlocalhost\\n' ;;
    requeue*) echo "$2" >> requeued ;;
    *) exit 1 ;;
esac
""",
    "scancel": '[[ "$*" == "--signal=TERM 77" ]] && kill -TERM $(cat tasks)',
}


@pytest.fixture
def slurm(home, tmp_path) -> dict[str, str]:
    """The environment of a job on two nodes, both this machine, its commands stand-ins for Slurm's."""
    for name, text in _STAND_INS.items():
        program(tmp_path / name, text)
    for leftover in ("tasks", "requeued"):
        (home / leftover).unlink(missing_ok=True)
    job = {"SLURM_SUBMIT_DIR": str(home), "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]"}
    nodes = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    return environment(**job, **nodes, PATH=f"{tmp_path}:{os.environ['PATH']}")


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


@pytest.mark.distributed
def test_a_stopped_slurm_job_saves_requeues_itself_and_goes_on(home, single_node, slurm):
    command = ["bash", str(SCRIPTS[0]), "run.yaml", "--set", "name=slurm"]
    job = subprocess.Popen(command, env=slurm, stderr=subprocess.PIPE, text=True)
    logged = home / "runs" / "slurm" / "metrics.jsonl"
    while not (logged.exists() and logged.stat().st_size):
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=200)[1]
    assert job.returncode != 0 and "stopped by a signal, with a checkpoint" in said, said
    assert (home / "requeued").read_text() == "77\n"
    (home / "tasks").unlink()
    (home / "requeued").unlink()
    again = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and "going on from" in again.stdout, again.stderr
    assert not (home / "requeued").exists()
    assert_equal(metrics(home, "slurm"), single_node)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(("code", "requeued"), [(1, True), (0, False)])  # 0: it had just come to its end
def test_the_slurm_job_waits_for_its_steps_before_it_requeues(home, tmp_path, slurm, number, code, requeued):
    log = home / "log"
    log.write_text("")
    save = f"sleep 0.2; echo saved >> log; kill $!; exit {code}"
    program(tmp_path / "torchrun", f"trap '{save}' TERM; echo on >> log; sleep 60 & wait")
    activate = home / ".venv" / "bin" / "activate"
    activated = activate.read_text()
    activate.write_text("")  # it would find the real torchrun first
    try:
        job = subprocess.Popen(["bash", str(SCRIPTS[0]), "run.yaml"], env=slurm)
        while log.read_text().count("on") < 2:
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(number)
        assert job.wait(timeout=30) == code
    finally:
        activate.write_text(activated)
    assert log.read_text().count("saved") == 2
    assert (home / "requeued").exists() == requeued


def test_the_slurm_job_says_how_it_is_used():
    done = subprocess.run(["bash", str(SCRIPTS[0])], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: sbatch deploy/slurm/train.sbatch CONFIG")
