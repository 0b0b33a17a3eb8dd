"""What a run of a study has left: whether it is done, how long it took, and what the next one starts from."""

from pathlib import Path

from multicoco.config import RunConfig
from multicoco.config.content import read_file
from multicoco.engine.trainer_state import age_key, all_checkpoints, read_state
from multicoco.engine.weights import choose
from multicoco.errors import UserError
from multicoco.evaluation.report import read_json_object, read_text
from multicoco.files import write_json
from multicoco.study.spec import Job

DONE = "done.json"  # in the folder of a run that has ended well


def is_done(job: Job) -> bool:
    return (job.folder / DONE).exists() and starts_right(job)


def starts_right(job: Job) -> bool:
    """Whether what is there of a run started from the last checkpoint of the one before it. Those of earlier versions
    started from the best one, by an evaluation whose questions may be those of a test."""
    if job.start is None:
        return True
    file, last = job.folder / "config.yaml", last_checkpoint(job.start.folder)
    if file.exists() and last is not None:
        named = Path(str(read_file(file)[0].get("load_model_path")))
        started_from = named if named.parent.name == "checkpoints" else choose(job.start.folder)[0]
        if started_from is not None and started_from.name != last.name:
            return False
    return starts_right(job.start)


def last_checkpoint(run: Path) -> Path | None:
    """The newest one, if there is any."""
    return max(all_checkpoints(run / "checkpoints"), key=age_key, default=None)


def is_trained(job: Job, config: RunConfig) -> bool:
    """Whether train.py would find nothing left to train."""
    last = last_checkpoint(job.folder)
    return last is not None and read_state(last).is_finished(config.num_epochs, bool(config.val_path))


def note_done(job: Job) -> None:
    write_json(job.folder / DONE, {"seconds": spent(job), "settings": list(job.overrides)})


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


def spent(job: Job) -> float:
    """Seconds of all starts of a run so far."""
    path = _spent_file(job)
    return float(read_json_object(read_text(path), str(path)).get("seconds", 0)) if path.exists() else 0.0


def note_spent(job: Job, taken: float) -> None:
    write_json(_spent_file(job), {"seconds": taken})


def _spent_file(job: Job) -> Path:
    return job.folder.with_name(f"{job.folder.name}.seconds.json")
