"""`multicoco study --plan`: what is done and what is to do, in how many steps, and how long it will take."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from multicoco.config import RunConfig
from multicoco.data.sources import load_of_run
from multicoco.doctor.hostfile import read_hostfile
from multicoco.engine.keeping import folder_of
from multicoco.engine.streaming import open_stream
from multicoco.evaluation.report import aligned
from multicoco.study.done import is_done, seconds
from multicoco.study.spec import Job, Study


def format_plan(study: Study, jobs: Sequence[Job], launcher: Sequence[str]) -> str:
    """The jobs, a line each, and the time that those to do will take.

    Raises:
        UserError: training records, or the launcher's hostfile, cannot be read.
    """
    ranks = ranks_of(launcher)
    steps = {arm: str(steps_of(study.training_config(arm), ranks or 1)) for arm in {job.arm for job in jobs}}
    done = [job for job in study.jobs if is_done(job)]
    missing = [job for job in jobs if job not in done]
    rows = [
        [job.name, "to do" if job in missing else "done", "" if job.test else steps[job.arm], str(job.folder)]
        for job in jobs
    ]
    by = "one process" if ranks in (None, 1) else f"{ranks} processes"
    lines = aligned([["run", "state", f"steps by {by}", "folder"], *rows])
    if ranks is None:
        lines.append(f"How many processes {launcher[0]} starts is not known here: with N of them, steps are an Nth.")
    lines.append(f"{len(missing)} of {len(jobs)} runs to do.")
    for kind, some in {
        "training": [job for job in missing if job.test is None],
        "evaluation": [job for job in missing if job.test is not None],
    }.items():
        if some:
            left = estimate(some, done)
            lines.append(f"{kind}: " + ("known once one is done" if left is None else f"about {duration(left)}"))
    if missing:
        lines.append(
            "A run is taken to last as long as that of the same arm with other seeds, else as the mean of its kind."
        )
    return "\n".join(lines)


def estimate(missing: Sequence[Job], done: Sequence[Job]) -> float | None:
    """Seconds that the missing jobs will take, each as the same arm's of other seeds, else as the mean of what is done
    of its kind; None before there is any."""
    taken = [(job.arm, job.test, seconds(job.folder)) for job in done]

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    total = 0.0
    for job in missing:
        same = mean([t for arm, test, t in taken if (arm, test) == (job.arm, job.test)])
        kind = mean([t for _, test, t in taken if (test is None) == (job.test is None)])
        one = kind if same is None else same
        if one is None:
            return None
        total += one
    return total


def duration(value: float) -> str:
    minutes = value / 60
    return f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def ranks_of(launcher: Sequence[str]) -> int | None:
    """How many processes a launcher starts; None where its command line does not say.

    Raises:
        UserError: its hostfile is not one.
    """
    program = Path(launcher[0]).name
    if program.startswith("python"):
        return 1 if len(launcher) == 1 else None
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    options.add_argument("--num_gpus", "--num_accelerators", "--nproc_per_node", "--nproc-per-node", "-n", "-np")
    options.add_argument("--num_nodes", "--nnodes")
    options.add_argument("-H", "--hostfile", default="/job/hostfile", type=Path)
    options.add_argument("-i", "--include", "-e", "--exclude", dest="chosen")
    try:
        given, _ = options.parse_known_args(launcher[1:])
        each = None if given.num_gpus is None else int(given.num_gpus)
        hosts = None if given.num_nodes is None else int(given.num_nodes)
    except (argparse.ArgumentError, ValueError):  # `--nproc_per_node auto`
        return None
    if program != "deepspeed":
        return None if each is None else each * (hosts or 1)
    if given.chosen is not None:
        return None
    if not given.hostfile.exists():
        return each
    slots = list(read_hostfile(given.hostfile).values())[:hosts]
    return sum(slots) if each is None else each * len(slots)


def steps_of(config: RunConfig, ranks: int) -> int:
    """Optimizer steps of a training."""
    if config.streaming:
        n_examples = len(open_stream(config, folder_of(config)))
    else:
        n_examples = len(load_of_run(config, str(config.train_path), config.max_train_samples, verify_images=False))
    return config.num_epochs * -(-n_examples // (config.batch_size * config.gradient_accumulation_steps * ranks))
