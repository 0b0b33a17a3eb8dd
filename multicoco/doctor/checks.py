"""Judges what the hosts have answered. A check gives rows: what was found on a host, and the remedy if that is bad."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from multicoco.config import RunConfig
from multicoco.doctor.hosts import Host
from multicoco.doctor.space import ModelSize, checkpoint_bytes, most_checkpoints

MAX_CLOCK_SKEW = 5.0  # seconds


@dataclass(frozen=True)
class Row:
    check: str
    host: str
    result: Literal["ok", "warning", "FAIL", "skipped"]
    found: str
    remedy: str = ""


def check_answers(hosts: Sequence[Host]) -> Iterator[Row]:
    """Reachable, with the folder and the python that the launcher uses, and a multicoco that starts."""
    for host in hosts:
        if host.unreachable:
            remedy = (
                f"`ssh -o BatchMode=yes {host.name} true` must work from here without a question: sshd running there, "
                "your public key in its authorized_keys, its host key known here"
            )
            yield Row("reachable", host.name, "FAIL", host.unreachable, remedy)
        elif host.missing:
            remedy = "the launcher uses the same folder and python on every host: share them, or install there too"
            yield Row("reachable", host.name, "FAIL", f"has no {' and no '.join(host.missing)}", remedy)
        elif host.silent:
            remedy = "config, checkout and packages must be at the same paths as here: share them, or install there too"
            yield Row("reachable", host.name, "FAIL", f"the probe failed: {host.silent}", remedy)
        else:
            yield Row("reachable", host.name, "ok", "same folder, same python")


def check_clocks(hosts: Sequence[Host]) -> Iterator[Row]:
    """All within MAX_CLOCK_SKEW of the first host."""
    first, *others = hosts
    for host in others:
        skew, error = host.clock - first.clock, host.clock_error + first.clock_error
        if abs(skew) - error > MAX_CLOCK_SKEW:
            found = f"{skew:+.1f} s from {first.name} (to within {error:.1f} s)"
            yield Row("clock", host.name, "FAIL", found, "set it with chrony or ntp (`chronyc makestep`)")
        else:
            yield Row("clock", host.name, "ok", f"within {MAX_CLOCK_SKEW:g} s of {first.name}")


def check_versions(hosts: Sequence[Host]) -> Iterator[Row]:
    """All as on the first host."""
    first = hosts[0]
    expected = first.facts["versions"]
    for host in hosts:
        versions = host.facts["versions"]
        different = [name for name in expected if versions[name] != expected[name]]
        if not different:
            found = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Row("versions", host.name, "ok", found)
        for name in different:
            found = f"{name} {versions[name]}, {first.name} has {expected[name]}"
            remedy = f"install the same there: pip install {name}=={str(expected[name]).partition('+')[0]}"
            if name in ("python", "multicoco", "multicoco source"):
                remedy = f"use the same {name.split()[0]} as {first.name}: share the folder, or bring both up to date"
            yield Row("versions", host.name, "FAIL", found, remedy)


def check_gpus(hosts: Sequence[Host]) -> Iterator[Row]:
    """A GPU for every slot; without any on all hosts it is a CPU run."""
    on_cpus = not any(host.facts["gpus"] for host in hosts)
    for host in hosts:
        gpus, slots = host.facts["gpus"], host.slots
        if on_cpus:
            remedy = "if there should be: `nvidia-smi` must list them, and torch must be a CUDA build"
            yield Row("GPUs", host.name, "warning", "no host has any: a run on CPUs", remedy)
        elif slots is not None and gpus < slots:
            remedy = f"write slots={gpus} for it in the hostfile, or look with `nvidia-smi` for what is missing"
            yield Row("GPUs", host.name, "FAIL", f"{gpus} for {slots} slots", remedy)
        else:
            yield Row("GPUs", host.name, "ok", f"{gpus}" if slots is None else f"{gpus} for {slots} slots")


def check_inputs(hosts: Sequence[Host], config: RunConfig) -> Iterator[Row]:
    """Config, ds_config and data files with the same content, and the folders that one host has on all of them."""
    expected, owner = {}, {}
    for host in hosts:
        for key, sha256 in host.facts["hashes"].items():
            if key not in expected:
                expected[key], owner[key] = sha256, host.name
    for host in hosts:
        problems = []
        for key, why in host.facts["unreadable"].items():
            problems.append((f"{key}: {why}", "bring it to the same path on every host, or mount the share it is on"))
        for key, sha256 in host.facts["hashes"].items():
            if sha256 != expected[key]:
                found = f"{key}: another content than on {owner[key]} (SHA-256 {sha256[:12]}, not {expected[key][:12]})"
                problems.append((found, f"copy it from {owner[key]}, or use one share for all hosts"))
        for key, is_there in host.facts["present"].items():
            value, owners = getattr(config, key), [h.name for h in hosts if h.facts["present"].get(key)]
            if not is_there and owners:
                found = f"{key}: {value} is missing, {owners[0]} has it"
                problems.append((found, f"copy it from {owners[0]}, or use one share for all hosts"))
            elif not is_there and not _may_be_hub_id(key, value):
                problems.append((f"{key}: {value} is missing", "make it first, or correct the path in the config"))
            elif not is_there:
                remedy = "a hub id needs a connection or a filled cache on every host; a folder must be made first"
                yield Row("inputs", host.name, "warning", f"{key}: no folder {value}, taken for a hub id", remedy)
        for found, remedy in problems:
            yield Row("inputs", host.name, "FAIL", found, remedy)
        if not problems:
            yield Row("inputs", host.name, "ok", f"the same {', '.join(expected)}")


def _may_be_hub_id(key: str, value: str) -> bool:
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return key in ("model_id", "load_model_path")


def check_output(hosts: Sequence[Host]) -> Iterator[Row]:
    """A run folder that every host can write, and in which each sees the others' files."""
    for host in hosts:
        output, others = host.facts["output"], [h for h in hosts if not h.facts["output"]["error"]]
        unseen = [other.name for other in others if other.name not in host.seen]
        if output["error"]:
            remedy = "mount it writable for you on every host, or set another output_dir"
            yield Row("output", host.name, "FAIL", f"cannot write {output['folder']}: {output['error']}", remedy)
        elif unseen:
            found = f"{output['folder']} is not shared: what {', '.join(unseen)} writes there is not seen"
            yield Row("output", host.name, "FAIL", found, "put output_dir on a file system that all hosts mount")
        else:
            yield Row("output", host.name, "ok", f"{output['folder']}, writable" + " and shared" * (len(hosts) > 1))


def check_space(hosts: Sequence[Host], config: RunConfig, size: ModelSize | None, zero_stage: int) -> Row:
    """Room for all checkpoints that the run will keep, those that are there already included."""
    host = min(hosts, key=lambda host: host.facts["output"]["free"])
    free, held = (host.facts["output"][key] / 1e9 for key in ("free", "held"))
    count = most_checkpoints(config)
    if size is None:
        found = f"{free:.1f} GB free; what {count} checkpoints take is unknown, model_id is not on this machine"
        return Row("space", host.name, "warning", found, "download the model first")
    one = checkpoint_bytes(size, zero_stage, config.bf16 or config.fp16) / 1e9
    found = f"{free:.1f} GB free, {count} checkpoints take about {count * one:.3g} GB ({one:.3g} GB each)"
    if held:
        found += f", {held:.1f} GB are there"
    if count * one - held > free:
        remedy = "make room, set another output_dir, or a smaller max_checkpoints_to_keep or keep_best_checkpoints"
        return Row("space", host.name, "FAIL", found, remedy)
    return Row("space", host.name, "ok", found)
