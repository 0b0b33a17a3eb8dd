"""All checks in their order, and the table."""

import os
from collections.abc import Sequence
from pathlib import Path

from multicoco.config import RunConfig, load_config
from multicoco.doctor import checks
from multicoco.doctor.checks import Row
from multicoco.doctor.hostfile import read_hostfile
from multicoco.doctor.hosts import Host, question
from multicoco.doctor.launch import check_bandwidth, check_master
from multicoco.doctor.space import model_size
from multicoco.engine.ds_config import ModelShape, resolve_ds_config
from multicoco.errors import UserError


def examine(config_path: Path, overrides: Sequence[str], hostfile: Path | None, seconds: int) -> list[Row]:
    """Checks every host of the hostfile, or this machine alone.

    Args:
        seconds: longest time for the all_reduce.

    Raises:
        UserError: the hostfile or the run config is wrong.
    """
    config = load_config(config_path, overrides)
    if hostfile:
        hostfile = Path(os.path.expanduser(os.path.expandvars(hostfile)))
        hosts = [Host(name, slots, is_remote=True) for name, slots in read_hostfile(hostfile).items()]
    else:
        hosts = [Host("this machine", None, is_remote=False)]
    question(hosts, config_path, overrides)
    rows = [*checks.check_answers(hosts), *checks.check_clocks([h for h in hosts if not h.unreachable] or hosts[:1])]
    answering = [host for host in hosts if host.facts and not host.silent]
    if answering:
        rows += checks.check_versions(answering)
        rows += checks.check_gpus(answering)
        rows += checks.check_inputs(answering, config)
        rows += checks.check_output(answering)
        rows.append(_check_engine(answering, config))
    if len(answering) == len(hosts):
        rows += check_master(hosts)
        rows.append(check_bandwidth(hosts, hostfile, seconds))
    else:
        rows.append(Row("all_reduce", "all ranks", "skipped", "needs every host"))
    return rows


def _check_engine(hosts: Sequence[Host], config: RunConfig) -> Row:
    """The ds_config against the run config and the number of ranks, and the room for its checkpoints."""
    try:
        size = model_size(config)
        world_size = sum(host.slots or host.facts["devices"] for host in hosts)
        shape = ModelShape(hidden_size=1, parameters=1, decoder_parameters=1, passes=1)  # decides about buckets only
        ds_config = resolve_ds_config(Path(config.deepspeed), config, world_size, shape)
    except UserError as error:
        return Row("ds_config", "all ranks", "FAIL", "it cannot be used with this run config", str(error))
    return checks.check_space(hosts, config, size, ds_config["zero_optimization"]["stage"])


def format_table(rows: Sequence[Row]) -> str:
    """Aligned text. Hosts of which the same is to be said share a line; a remedy stands below what it is for."""
    merged: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        merged.setdefault((row.result, row.check, row.found, row.remedy), []).append(row.host)
    hosts = {row.host for row in rows if row.check == "reachable"}
    lines = [("result", "check", "host", "found", "")]
    for (result, check, found, remedy), names in merged.items():
        everywhere = len(hosts) > 1 and set(names) == hosts
        lines.append((result, check, f"all {len(hosts)}" if everywhere else ", ".join(names), found, remedy))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    texts = []
    for *short, found, remedy in lines:
        texts.append("  ".join([*(text.ljust(width) for text, width in zip(short, widths, strict=True)), found]))
        if remedy:
            texts.append(" " * (sum(widths) + 6) + f"-> {remedy}")
    return "\n".join(texts)
