"""Runs on each host, `python -m multicoco.doctor.probe`, and tells what it finds there. Three lines of JSON each way:

in   {"config": path, "overrides": [...], "token": name}     out  the facts (see `facts`)
in   {"tokens": [...], "made": [...]}                        out  {"seen": [...]}
in   end of file, also when the doctor has died: what was written is removed
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

import multicoco
from multicoco.config import RunConfig, load_config
from multicoco.data.sources.location import locate
from multicoco.engine.deepspeed import free_port
from multicoco.engine.resume import data_hash
from multicoco.errors import UserError
from multicoco.process import end_process
from multicoco.tracking import environment


def facts(config: RunConfig) -> dict[str, Any]:
    """What this host has of the things that all hosts need."""
    return {
        "versions": versions(),
        "gpus": torch.cuda.device_count(),
        "devices": get_accelerator().device_count(),  # what `deepspeed` starts without a hostfile
        "address": address(),
        "free_port": free_port(),
        **read_inputs(config),
    }


def versions() -> dict[str, str | None]:
    """Of python, the packages, and this package's source, which can differ between checkouts of one version."""
    here = environment()
    source = hashlib.sha256()
    for path in sorted(Path(multicoco.__file__).parent.rglob("*.py")):
        source.update(path.read_bytes())
    known = {name: here[name] for name in ("python", "torch", "deepspeed", "transformers", "multicoco")}
    return known | {"multicoco source": source.hexdigest()[:12]}


def address() -> str | None:
    """The one that DeepSpeed's launcher makes the master's: the first of `hostname -I`."""
    done = subprocess.run(["hostname", "-I"], capture_output=True, text=True)
    return next(iter(done.stdout.split()), None)


def read_inputs(config: RunConfig) -> dict[str, Any]:
    """SHA-256 of the config and of every file it names, or why a file cannot be read; and whether its folders exist."""
    named = {"train_path": config.train_path, "val_path": config.val_path}
    files = {"deepspeed": locate("", config.deepspeed)}
    files |= {key: locate(config.data_dir, path) for key, path in named.items() if path}
    hashes = {"config": hashlib.sha256(config.to_yaml().encode()).hexdigest()}
    unreadable = {}
    for key, location in files.items():
        try:
            hashes[key] = data_hash(location, streamed=config.streaming and key == "train_path")
        except UserError as error:
            unreadable[key] = str(error)
    folders = {key: getattr(config, key) for key in ("image_dir", "model_id", "load_model_path")}
    present = {key: Path(path).exists() for key, path in folders.items() if path}
    return {"hashes": hashes, "unreadable": unreadable, "present": present}


class Token:
    """A small file in the run folder, by which the hosts see whether they share it.

    Attributes:
        made: the folders that had to be made for it.
        error: why it could not be written.
    """

    def __init__(self, folder: Path, name: str):
        self.folder = folder.absolute()
        self.path = self.folder / name
        self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.error: str | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text(name, encoding="utf-8")
        except OSError as error:
            self.error = str(error)

    def room(self) -> dict[str, Any]:
        """Bytes that are free where the run folder is, and that its checkpoints hold already."""
        standing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        files = self.folder.glob("checkpoints/**/*")
        held = sum(path.stat().st_size for path in files if path.is_file())
        made = [str(path) for path in self.made]
        free = shutil.disk_usage(standing).free
        return {"folder": str(self.folder), "error": self.error, "made": made, "free": free, "held": held}

    def seen(self, names: list[str]) -> list[str]:
        """Those of the hosts' tokens that this host can read. By name: a network file system may list from a cache."""
        return [name for name in names if (self.folder / name).is_file()]

    def remove(self, made: list[str]) -> None:
        """Removes the token, and the folders that any host had to make if this was the last token in them."""
        self.path.unlink(missing_ok=True)
        for path in sorted({*map(Path, made), *self.made}, reverse=True):
            with suppress(OSError):  # another host's token is still there, or it has been quicker
                path.rmdir()


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    request = json.loads(sys.stdin.readline())
    try:
        config = load_config(request["config"], request["overrides"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    token, made = Token(config.run_dir, request["token"]), []
    try:
        print(json.dumps(facts(config) | {"output": token.room()}), file=answers, flush=True)
        if line := sys.stdin.readline():
            all_hosts = json.loads(line)
            made = all_hosts["made"]
            print(json.dumps({"seen": token.seen(all_hosts["tokens"])}), file=answers, flush=True)
            sys.stdin.readline()
    finally:
        token.remove(made)
    return 0


if __name__ == "__main__":
    end_process(main())
