"""What must be the same when a run goes on: its config, its data, its global batch."""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import yaml

from multicoco.config import RunConfig
from multicoco.config.combinations import PUBLISHED_MODES
from multicoco.data.sources.location import Location
from multicoco.data.sources.mixture import read_parts
from multicoco.data.sources.tables import revision_of
from multicoco.engine.manifest import sha256
from multicoco.engine.streaming import stream_hash
from multicoco.engine.trainer_state import TrainerState
from multicoco.errors import UserError

# keys, or sections, that change how a run is watched, kept or computed, but not what is computed
_HARMLESS = {
    *("project", "name", "output_dir", "use_run_name_in_output_dir", "log_every_steps", "report"),
    *("tracking", "wandb"),
    *("resume", "max_checkpoints_to_keep", "keep_best_checkpoints", "save_only_improve", "save_every_steps"),
    *("asynchronous_save", "on_save_error", "preemption_grace_seconds", "lost_rank_seconds", "max_skipped_steps"),
    *("val_path", "max_val_samples", "eval_batch_size", "eval_every_epochs", "eval_config", "generation"),
    *("data_dir", "num_workers", "kernel", "cuda_graphs", "activation_checkpointing", "deepspeed", "self_check"),
    *("batch_size", "gradient_accumulation_steps"),  # the global batch they make is checked instead
    *("answer_type", "features", "features_dir"),
    *("model_id", "load_model_path", "trust_remote_code"),  # the weights come from the checkpoint
}
_MISSING = object()


def config_changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, "old -> new") for every key at which two configs differ; sections key by key."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, _MISSING), new.get(key, _MISSING)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from config_changes(before, after, f"{prefix}{key}.")
        elif before != after:
            texts = ["(absent)" if value is _MISSING else json.dumps(value) for value in (before, after)]
            yield f"{prefix}{key}", " -> ".join(texts)


def check_unchanged(
    checkpoint: Path,
    state: TrainerState,
    config: RunConfig,
    data: dict[str, str],
    global_batch: int,
    allowed: Collection[str],
) -> list[str]:
    """Compares a run with the checkpoint it is to go on from.

    Args:
        data: SHA-256 of its data files, by the config's key.
        allowed: keys that may change although they change the mathematics.

    Returns:
        The differences that apply, one line each.

    Raises:
        UserError: others, all of them listed.
    """
    old = _comparable(yaml.safe_load((checkpoint / "config.yaml").read_text(encoding="utf-8")))
    changes = dict(config_changes(old, _comparable(yaml.safe_load(config.to_yaml()))))
    for key in ("train_path", "val_path"):
        if state.data.get(key) == data.get(key):
            changes.pop(key, None)  # wherever it lies, it is the same file
        elif key not in changes:
            changes[key] = "same name, but the file has changed"
    refused = [
        f"{key}: {change}"
        for key, change in changes.items()
        if key.split(".")[0] not in _HARMLESS and key not in allowed and key.split(".")[0] not in allowed
    ]
    if state.global_batch != global_batch and "batch_size" not in allowed:
        refused.append(
            f"batch_size: {state.global_batch} -> {global_batch} examples in a global batch (batch_size x "
            "gradient_accumulation_steps x ranks)"
        )
    if refused:
        raise UserError(
            f"{checkpoint} was trained otherwise, going on would not be the same run:\n  "
            + "\n  ".join(refused)
            + "\nundo the change, give this run another name, or accept it with --allow-change KEY"
        )
    return [f"{key}: {change}" for key, change in changes.items()]


def about_examples(config: RunConfig) -> dict[str, Any]:
    """What of a config may change how an example is written, and more."""
    watched = _HARMLESS - {"model_id", "load_model_path", "trust_remote_code"}
    return {key: value for key, value in _comparable(yaml.safe_load(config.to_yaml())).items() if key not in watched}


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """With keys that are newer than the file at their defaults, and `mode` in its general form."""
    defaults = RunConfig.model_construct()  # type: ignore[call-arg]  # the required keys are in every file
    filled = _filled(defaults.model_dump(mode="json"), config)
    if filled.get("mode") in PUBLISHED_MODES:
        filled |= {"mode": "train", "method": PUBLISHED_MODES[filled["mode"]]}
    return filled


def _filled(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = dict(given)
    for key, default in defaults.items():
        if key not in merged:
            merged[key] = default
        elif isinstance(default, dict) and isinstance(merged[key], dict):
            merged[key] = _filled(default, merged[key])
    return merged


def file_hash(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = path.stat()
        return _hash_once(path, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


@lru_cache
def _hash_once(path: Path, size: int, mtime: int) -> str:
    return sha256(path)


def data_hash(location: Location, streamed: bool = False) -> str:
    """SHA-256 of the records at a `train_path` or `val_path`: of a file, of all files of a folder or of a pattern, by
    their names too; of a mixture, with all that it lists; on the hub, of what names the content; of a stream, of what
    tells its files from others (`stream_hash`).

    Raises:
        UserError: they cannot be read.
    """
    if streamed:
        return stream_hash(location)
    place = Path(location.place)
    if location.is_mixture:
        parts = [data_hash(part.location(place.parent)) for part in read_parts(location)]
        return hashlib.sha256("\n".join([file_hash(place), *parts]).encode()).hexdigest()
    if not location.is_table or place.is_file():
        return file_hash(place)
    if location.on_hub:
        return hashlib.sha256(f"{location.place} {location.split} {revision_of(location)}".encode()).hexdigest()
    if not location.files:
        raise UserError(f"{location} cannot be read: there is no such file")
    below = place if place.is_dir() else place.parent
    named = [f"{file.relative_to(below)} {file_hash(file)}" for file in location.files]
    return hashlib.sha256("\n".join([str(location.split), *named]).encode()).hexdigest()


def lock_run_folder(run_dir: Path) -> IO[str]:
    """Makes this process the owner of a run folder as long as the returned file is open; the system lets go of it
    when the process ends, however it ends.

    Raises:
        UserError: another process owns it, or it cannot be written.
    """
    path = run_dir / ".lock"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"run folder {run_dir} cannot be written ({error}): set another output_dir or name") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise UserError(
            f"run folder {run_dir} is in use by {file.read().strip() or 'another run'}: wait for it or stop it, or "
            "give this run another name"
        ) from None
    file.truncate(0)
    print(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}", file=file, flush=True)
    return file
