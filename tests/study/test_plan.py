"""How many processes a launcher starts, and how long what is missing will take."""

import sys
from pathlib import Path

import pytest

from multicoco.cli import main
from multicoco.study.done import note_done, note_spent
from multicoco.study.plan import ranks_of
from multicoco.study.spec import load_study


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        (sys.executable, 1),
        ("deepspeed --num_gpus 2", 2),
        ("deepspeed --num_gpus=8 --master_port 29600", 8),
        ("/opt/bin/deepspeed --hostfile hosts", 12),
        ("deepspeed -H hosts --num_gpus 2", 4),
        ("deepspeed --hostfile hosts --num_nodes 1", 8),
        ("deepspeed --hostfile hosts --include one:0", None),
        ("deepspeed", None),
        ("torchrun --nproc_per_node 4", 4),
        ("torchrun --nnodes=2 --nproc-per-node 4", 8),
        ("torchrun --nproc_per_node auto", None),
        ("torchrun --nnodes 1:4 --nproc_per_node 2", None),
        ("mpirun -n 3", 3),
        ("python -m torch.distributed.run --nproc_per_node 2", None),
        ("srun", None),
    ],
)
def test_processes_of_a_launcher(tmp_path, monkeypatch, launcher, expected):
    monkeypatch.chdir(tmp_path)
    Path("hosts").write_text("one slots=8\ntwo slots=4\n")
    assert ranks_of(launcher.split()) == expected


def test_steps_are_those_of_the_launchers_processes_and_times_those_of_what_is_done(written, study, capsys):
    study["seeds"] = [0, 1]
    file = written()

    def plan(launcher: str) -> str:
        assert main(["study", str(file), "--plan", "--launcher", launcher]) == 0
        return capsys.readouterr().out

    [header, *lines] = plan(f"{sys.executable} -u").splitlines()
    assert "steps by one process" in header and any("How many processes" in line for line in lines)
    [training, _] = [job for job in load_study(file).jobs if job.label == "direct/0"]
    training.folder.mkdir(parents=True)
    note_spent(training, 120)
    note_done(training)
    text = plan("deepspeed --num_gpus 4")
    assert "steps by 4 processes" in text and "How many processes" not in text
    [hidden] = [line for line in text.splitlines() if line.startswith("hidden/1 training")]
    assert hidden.split()[4] == str(2 * 3)  # of 10 examples, 4 at a time
    assert "11 of 12 runs to do.\ntraining: about 10.0 minutes\nevaluation: known once one is done\n" in text
