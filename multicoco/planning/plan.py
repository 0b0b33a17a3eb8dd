"""Chooses a ds_config for a run config and a cluster, without a GPU and without weights: `multicoco plan`."""

import json
from collections.abc import Sequence
from pathlib import Path

from multicoco.config import RunConfig
from multicoco.engine.assembly import model_dtype
from multicoco.errors import UserError
from multicoco.files import write_text
from multicoco.methods import method_class
from multicoco.planning.candidates import HEADER, HEADROOM, candidates, choose
from multicoco.planning.cost import Cluster
from multicoco.planning.data import describe_data
from multicoco.planning.explanation import explain
from multicoco.planning.geometry import Workload, geometry_of, read_model_config
from multicoco.planning.setting import ds_config, overrides
from multicoco.planning.workload import Lengths, stage_workloads


def plan(config: RunConfig, cluster: Cluster, tiles: int | None, assumed: Lengths | None, path: Path | None) -> str:
    """Chooses a setting and says why; with a path, writes it.

    Args:
        tiles, assumed: as in `stage_workloads`.

    Raises:
        UserError: the config does not train, its model's config cannot be read, nothing fits, or a file is
            in the way.
    """
    if config.mode == "eval_only":
        raise UserError("mode is eval_only: only training is planned")
    files = (path, explanation_path(path)) if path else None
    method = method_class(config.trained_method)(config)
    model = geometry_of(
        read_model_config(config.model_id, config.trust_remote_code),
        model_dtype(config),
        config.freeze.model_dump(),
        method.objective,
        kept_parts=() if config.features is None else ("vision_tower", *["projector"] * config.freeze.projector),
        lora=config.lora,
        projection=method.projection,
    )
    workloads, source, sample = stage_workloads(config, model, tiles, assumed)
    found = candidates(config, model, workloads, cluster)
    chosen = choose(found, cluster)
    of_data = describe_data(config, model, method, workloads[-1], chosen, cluster, sample)
    explanation = "\n".join([explain(chosen, model, cluster), *(f"- {line}" for line in of_data)])
    lines = [
        f"{config.model_id}: {model.parameters / 1e9:.2f} billion parameters, {model.trainable / 1e9:.2f} trained, "
        f"on {cluster.nodes} x {cluster.gpus} GPUs of {cluster.gpu_memory:g} GiB",
        *(f"longest example: {_describe(work)}" for work in workloads),
        f"lengths {source}",
        "",
        f"Estimates of {len(found)} settings, the fastest first. In GiB a GPU, each part at its own worst moment, the "
        "peak at that of the whole; CPU: what rank 0 holds in the CPU's memory while it saves; resident: both, as a "
        "run on CPUs has them in one memory; sent in a step by a GPU within its node, and by a node, in GB.",
        "",
        markdown_table(HEADER, [candidate.row(cluster) for candidate in found]),
        "",
        f"Chosen, as the fastest that fits with {HEADROOM:.0%} of the memory left free: {chosen.name}",
        "",
        explanation,
    ]
    if files:
        path, notes = files
        write_text(path, json.dumps(ds_config(chosen.setting), indent=2) + "\n")
        write_text(notes, explanation + "\n")
        options = " ".join(f"--set {key}={str(value).lower()}" for key, value in overrides(chosen.setting).items())
        lines += ["", f"wrote {path} and {notes}; train with: --deepspeed_config {path} {options}"]
    return "\n".join(lines)


def _describe(work: Workload) -> str:
    image = f" with {work.tiles} image tiles" if work.tiles else ""
    branch = f", {work.branch} in its branch" if work.branch else ""
    besides = ""
    if work.beside:
        rows, read, written = work.beside
        besides = f"; besides, {rows} rows of {read} columns that are read and {written} that are written"
    said = f"; {work.said} words are said of its thoughts" if work.said else ""
    return f"{work.prompt} columns{image}, {work.latents} latent, {work.written} written{branch}{besides}{said}"


def explanation_path(path: Path) -> Path:
    """Where the explanation of a ds_config to be written goes.

    Raises:
        UserError: one of the two files exists, or has no folder to be in.
    """
    notes = path.with_suffix(".md")
    if path == notes:
        raise UserError(f"{path}: the ds_config is JSON, its explanation goes to the same name with .md: give a .json")
    for file in (path, notes):
        if file.exists():
            raise UserError(f"{file} exists: give another --write, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
    return notes


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: a table in Markdown and on a terminal alike."""
    lines = [list(header), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])
