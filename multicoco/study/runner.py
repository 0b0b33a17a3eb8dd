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

from multicoco.errors import UserError
from multicoco.study.done import DONE, is_done, is_trained, last_checkpoint, note_done, note_spent, spent, starts_right
from multicoco.study.plan import duration, estimate
from multicoco.study.spec import Job, Study

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
_STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)  # of a run that a signal has ended
_LAST_LINES = 3


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


def run_missing(study: Study, jobs: Sequence[Job], launcher: Sequence[str], say: Callable[[str], None]) -> list[str]:
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
    done = [job for job in study.jobs if is_done(job)]
    missing = [job for job in jobs if job not in done]
    for place, job in enumerate(missing, start=1):
        if (obstacle := _obstacle(job)) is not None:
            problems.append(f"{job.name}: {obstacle}")
            say(problems[-1])
            continue
        if job.test is None and is_trained(job, study.config_of(job)):  # the study was killed before it could note it
            note_done(job)
            done.append(job)
            continue
        left = estimate(missing[place - 1 :], done)
        again = "" if starts_right(job) else " again, of its last checkpoint (an earlier version asked the best)"
        time_left = "" if left is None else f", about {duration(left)} left in all"
        say(f"[{place}/{len(missing)}] {job.name}{again}{time_left}")
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
        else:
            done.append(job)
    return problems


def _obstacle(job: Job) -> str | None:
    """Why a run that is not done cannot be started."""
    if job.start is None:
        return None
    if not is_done(job.start):
        return f"not done, it needs {job.start.folder}"
    if job.test is None and not starts_right(job) and last_checkpoint(job.folder) is not None:
        return (
            f"{job.folder} did not start from the last checkpoint of {job.start.folder} but, by an earlier version, "
            "from its best: remove it, and those that start from it, and they are trained again"
        )
    return None


def _launch(job: Job, launcher: Sequence[str], log: Path) -> int:
    """Returns the exit code; notes whether the run is done, and the time of this and of earlier starts."""
    overrides = [*job.overrides]
    if job.start is not None:
        overrides.append(f"load_model_path={last_checkpoint(job.start.folder)}")
    settings = [part for override in overrides for part in ("--set", override)]
    log.parent.mkdir(parents=True, exist_ok=True)
    (job.folder / DONE).unlink(missing_ok=True)
    before, started = spent(job), time.time()
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
            note_spent(job, before + time.time() - started)
    if code == 0:
        note_done(job)
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


def _stop(number: int, frame: object) -> NoReturn:
    raise UserError("stopped by a signal: the same command goes on from there")
