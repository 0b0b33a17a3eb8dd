"""Does what is missing of a study, a run after the other, by launching train.py."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from multicoco.config import RunConfig, load_config
from multicoco.data.sources import load_of_run
from multicoco.engine.keeping import folder_of
from multicoco.engine.streaming import open_stream
from multicoco.engine.trainer_state import age_key, all_checkpoints, read_state
from multicoco.errors import UserError
from multicoco.evaluation.report import aligned, read_json_object, read_text
from multicoco.study.spec import Job, Study
from multicoco.tracking import write_json

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
DONE = "done.json"  # in the folder of a run that has ended well
_STOPPING = (signal.SIGTERM, signal.SIGHUP)
_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)  # of a run that a signal has ended
_LAST_LINES = 3


def is_done(folder: Path) -> bool:
    return (folder / DONE).exists()


def seconds(folder: Path) -> float:
    """How long a run that is done has taken, over all its starts.

    Raises:
        UserError: the file that says it is damaged.
    """
    path = folder / DONE
    taken = read_json_object(read_text(path), str(path)).get("seconds")
    if not isinstance(taken, int | float):
        raise UserError(f"{path}: has no seconds: remove it, and the run is looked at again")
    return float(taken)


def choose(study: Study, only: Collection[str]) -> list[Job]:
    """The jobs of the named `arm/seed`s, or of an `arm`; all without any.

    Raises:
        UserError: a name is none of the study's.
    """
    known = {name for job in study.jobs for name in (job.label, job.arm)}
    if unknown := sorted(set(only) - known):
        raise UserError(
            f"--only {unknown[0]}: the study has {', '.join(dict.fromkeys(job.label for job in study.jobs))}"
        )
    return [job for job in study.jobs if not only or job.label in only or job.arm in only]


def read_launcher(text: str) -> list[str]:
    """A command line's parts.

    Raises:
        UserError: it is none, or there is no such command.
    """
    try:
        launcher = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--launcher {text}: {error}") from error
    if not launcher or shutil.which(launcher[0]) is None:
        raise UserError(f"--launcher {text}: there is no such command; it is what stands before train.py")
    return launcher


def run_missing(jobs: Sequence[Job], launcher: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Does the jobs that are not done; one that fails ends only those that need it.

    Args:
        launcher: the command before train.py.

    Returns: what has failed or could not be done, a sentence each.

    Raises:
        UserError: a signal has stopped a run; the same command goes on.
    """
    if not TRAIN.exists():
        raise UserError(f"{TRAIN} is not there: a study launches it, so run it from a checkout (pip install -e .)")
    problems: list[str] = []
    missing = [job for job in jobs if not is_done(job.folder)]
    for place, job in enumerate(missing, start=1):
        if lacking := [need for need in job.needs if not is_done(need)]:
            problems.append(f"{job.name}: not done, it needs {lacking[0]}")
            say(problems[-1])
            continue
        if job.test is None and _is_trained(job):  # the study was killed before it could note it
            _note_done(job, _spent(job))
            continue
        left = estimate(missing[place - 1 :], jobs)
        say(f"[{place}/{len(missing)}] {job.name}" + ("" if left is None else f", about {_duration(left)} left in all"))
        log = job.folder.with_name(f"{job.folder.name}.log")
        try:
            code = _launch(job, launcher, log)
        except OSError as error:
            raise UserError(f"{job.name} cannot be started ({error}), its output goes to {log}") from error
        if code in _STOPPED:
            raise UserError(f"{job.name} was stopped by a signal: the same command goes on from there")
        if code:
            last = "\n    ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])
            problems.append(f"{job.name} failed with code {code}, see {log}:\n    {last}")
            say(problems[-1])
    return problems


def _launch(job: Job, launcher: Sequence[str], log: Path) -> int:
    """Returns the exit code; notes whether the run is done, and the time of this and of earlier starts."""
    settings = [part for override in job.overrides for part in ("--set", override)]
    log.parent.mkdir(parents=True, exist_ok=True)
    before, started = _spent(job), time.time()
    with log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*launcher, str(TRAIN), str(job.config), *settings],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # one group, whatever the launcher starts
        )
        heard = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]  # `nohup` ignores one
        earlier = {number: signal.signal(number, _stop) for number in heard}
        try:
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
            write_json(_spent_file(job), {"seconds": before + time.time() - started})
    if code == 0:
        _note_done(job, _spent(job))
    return code


def _end(process: subprocess.Popen[bytes]) -> None:
    """The run saves a checkpoint and ends. `deepspeed` would end alone and leave its ranks behind: all are told, and
    waited for."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        while True:
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def _spent_file(job: Job) -> Path:
    return job.folder.with_name(f"{job.folder.name}.seconds.json")


def _spent(job: Job) -> float:
    """Seconds of all starts of a run so far."""
    path = _spent_file(job)
    return float(read_json_object(read_text(path), str(path)).get("seconds", 0)) if path.exists() else 0.0


def _note_done(job: Job, taken: float) -> None:
    write_json(job.folder / DONE, {"seconds": taken, "settings": list(job.overrides)})


def _is_trained(job: Job) -> bool:
    """Whether train.py would find nothing left to train."""
    config = load_config(job.config, job.overrides)
    checkpoints = all_checkpoints(job.folder / "checkpoints")
    if not checkpoints:
        return False
    state = read_state(max(checkpoints, key=age_key))
    return state.epoch >= config.num_epochs and (state.evaluated or not config.val_path)


def _stop(number: int, frame: object) -> NoReturn:
    raise UserError("stopped by a signal: the same command goes on from there")


def estimate(missing: Sequence[Job], jobs: Sequence[Job]) -> float | None:
    """Seconds that the missing jobs will take, each as the same arm's of other seeds, else as the mean of what is done
    of its kind; None before there is any."""
    taken = [(job.arm, job.test, seconds(job.folder)) for job in jobs if is_done(job.folder)]

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


def format_plan(study: Study, jobs: Sequence[Job]) -> str:
    """What is done and what is to do, and how long it will take if something like it is done already.

    Raises:
        UserError: training records cannot be read.
    """
    steps = {arm: str(_steps(study.training_config(arm))) for arm in {job.arm for job in jobs}}
    rows = [
        [job.name, "done" if is_done(job.folder) else "to do", "" if job.test else steps[job.arm], str(job.folder)]
        for job in jobs
    ]
    missing = [job for job in jobs if not is_done(job.folder)]
    left = estimate(missing, study.jobs)
    how_long = "how long they take is known once one of each kind is done" if left is None else _duration(left)
    total = f"{len(missing)} of {len(jobs)} runs to do" + (f": {how_long}" if missing else "")
    return "\n".join([*aligned([["run", "state", "steps by one process", "folder"], *rows]), total])


def _steps(config: RunConfig) -> int:
    """Optimizer steps of a training by one process."""
    if config.streaming:
        n_examples = len(open_stream(config, folder_of(config)))
    else:
        n_examples = len(load_of_run(config, str(config.train_path), config.max_train_samples, verify_images=False))
    return config.num_epochs * -(-n_examples // (config.batch_size * config.gradient_accumulation_steps))


def _duration(value: float) -> str:
    minutes = value / 60
    return f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
