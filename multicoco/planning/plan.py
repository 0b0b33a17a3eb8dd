"""Chooses a ds_config for a run config and a cluster, without a GPU and without weights: `multicoco plan`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multicoco.config import RunConfig
from multicoco.errors import UserError
from multicoco.methods import method_class
from multicoco.planning.cost import Cluster, Cost, step_cost
from multicoco.planning.geometry import ModelGeometry, Workload, read_model_config
from multicoco.planning.memory import PARTS, Memory, Setting, pass_activations, peak_memory
from multicoco.planning.resident import LIBRARIES, HostMemory, host_memory
from multicoco.planning.workload import Lengths, stage_workloads
from multicoco.tracking import write_text

GIB, MIB = 2**30, 2**20
HEADROOM = 0.1  # of a GPU, for what is not modelled: CUDA's context, NCCL's buffers, fragmentation
_BUCKET = 500_000_000  # numbers, as in ds_configs/
_MAX_LIVE = 1_000_000_000  # likewise
_ON_CPU = {"none": "-", "optimizer": "optimizer", "all": "optimizer and parameters"}
HEADER = [
    "ZeRO",
    "live",
    "on CPU",
    "ckpt.",
    "batch x acc.",
    *PARTS,
    "MiB/latent pass",
    "peak",
    "CPU",
    "resident",
    "GB/GPU",
    "GB/node",
    "s/step",
    "fits",
]


@dataclass(frozen=True)
class Candidate:
    """A setting with its estimates.

    Attributes:
        memory: of the stage that needs most.
        host: likewise, in the CPU's memory.
        cost, passes: of the stage with most latents; passes is what `pass_activations` returns.
    """

    setting: Setting
    memory: Memory
    host: HostMemory
    passes: list[int]
    cost: Cost

    def fits(self, cluster: Cluster) -> bool:
        return self.memory.peak <= (1 - HEADROOM) * cluster.gpu_memory * GIB

    @property
    def name(self) -> str:
        on_cpu = f", {_ON_CPU[self.setting.offload]} on CPU" if self.setting.offload != "none" else ""
        return f"ZeRO-{self.setting.stage}{on_cpu}"

    def row(self, cluster: Cluster) -> list[str]:
        """What stands under HEADER."""
        setting, cost = self.setting, self.cost
        return [
            str(setting.stage),
            f"{setting.max_live / 1e9:.1f} B" if setting.stage == 3 else "-",
            _ON_CPU[setting.offload],
            "yes" if setting.checkpointing else "no",
            f"{setting.micro_batch} x {setting.accumulation}",
            *(f"{nbytes / GIB:.1f}" for nbytes in self.memory.parts.values()),
            f"{self.passes[1] / MIB:.1f}" if len(self.passes) > 2 else "-",
            f"{self.memory.peak / GIB:.1f}",
            f"{self.host.rank_0 / GIB:.1f}",
            f"{(self.memory.peak + self.host.rank_0) / GIB:.1f}",
            f"{cost.intra_bytes / 1e9:.1f}",
            f"{cost.inter_bytes / 1e9:.1f}",
            f"{cost.seconds:.2f}",
            "yes" if self.fits(cluster) else "no",
        ]


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
    model = ModelGeometry(
        read_model_config(config.model_id, config.trust_remote_code),
        model_dtype(config),
        config.freeze.model_dump(),
        method_class(config.trained_method)(config).model_copy,
        kept_parts=() if config.features is None else ("vision_tower", *["projector"] * config.freeze.projector),
        lora=config.lora,
    )
    workloads, source = stage_workloads(config, model, tiles, assumed)
    found = candidates(config, model, workloads, cluster)
    chosen = choose(found, cluster)
    explanation = explain(chosen, model, cluster)
    lines = [
        f"{config.model_id}: {model.parameters / 1e9:.2f} billion parameters, {model.trainable / 1e9:.2f} trained, "
        f"on {cluster.nodes} x {cluster.gpus} GPUs of {cluster.gpu_memory:g} GiB",
        *(f"longest example: {_describe(work)}" for work in workloads),
        f"lengths {source}",
        *([_describe_features(config, model, workloads[-1])] if config.features else []),
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
    return f"{work.prompt} columns{image}, {work.latents} latent, {work.written} written{branch}"


def _describe_features(config: RunConfig, model: ModelGeometry, work: Workload) -> str:
    image = work.tiles * model.kept_bytes
    read = config.batch_size * config.gradient_accumulation_steps * work.rows * image
    what = "what the vision tower makes is kept" if model.projects_kept else "features kept"
    return (
        f"{what}: {image / MIB:.1f} MiB of an image on disk, {1000 * image / GIB:.1f} GiB of 1,000 such images; "
        f"a GPU is given {read / MIB:.0f} MiB of them a step, and the vision tower is not called"
    )


def model_dtype(config: RunConfig) -> torch.dtype:
    return torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else torch.float32


def candidates(
    config: RunConfig, model: ModelGeometry, workloads: Sequence[Workload], cluster: Cluster
) -> list[Candidate]:
    """Every setting that keeps the run config's global batch, with its estimates, the fastest first."""
    found = []
    for setting in _settings(config, model, cluster):
        memories = [peak_memory(model, work, setting) for work in workloads]
        largest = max(memories, key=lambda memory: memory.peak)
        host = host_memory(model, setting, largest, config.asynchronous_save)
        passes = pass_activations(model, workloads[-1], setting)
        found.append(Candidate(setting, largest, host, passes, step_cost(model, workloads[-1], setting, cluster)))
    return sorted(found, key=lambda candidate: candidate.cost.seconds)


def _settings(config: RunConfig, model: ModelGeometry, cluster: Cluster) -> Iterator[Setting]:
    examples = config.batch_size * config.gradient_accumulation_steps
    sizes = [2**power for power in range(examples.bit_length()) if examples % 2**power == 0]
    # all parameters, or those that stay through the latent passes, or as many as in ds_configs/
    live_limits = sorted({max(_MAX_LIVE, number) for number in (model.parameters, model.decoder_parameters, 0)})
    for stage in range(4):
        bucket = model.text.hidden_size**2 if stage == 3 else _BUCKET
        for offload in ["none", *["optimizer"] * (stage > 0), *["all"] * (stage == 3)]:
            for checkpointing in (False, True):
                for size in sizes:
                    for max_live in live_limits if stage == 3 else [_MAX_LIVE]:
                        yield Setting(
                            stage, offload, checkpointing, size, examples // size, cluster.ranks, bucket, max_live
                        )


def choose(found: Sequence[Candidate], cluster: Cluster) -> Candidate:
    """The fastest that fits.

    Raises:
        UserError: none does; the message says what the smallest is made of, and what would make it smaller.
    """
    for candidate in found:
        if candidate.fits(cluster):
            return candidate
    smallest = min(found, key=lambda candidate: candidate.memory.peak)
    raise UserError(
        f"nothing fits {cluster.ranks} GPUs of {cluster.gpu_memory:g} GiB, of which {HEADROOM:.0%} stay free. The "
        f"smallest, {smallest.name}{' with checkpointing' * smallest.setting.checkpointing} and a micro-batch of "
        f"{smallest.setting.micro_batch}, needs {smallest.memory.peak / GIB:.1f} GiB a GPU: "
        f"{_kinds(smallest.memory.device)}. {_remedy(smallest)}"
    )


def _kinds(parts: dict[str, int]) -> str:
    largest_first = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {nbytes / GIB:.1f}" for kind, nbytes in largest_first if nbytes >= 0.05 * GIB)


def _remedy(smallest: Candidate) -> str:
    largest = max(smallest.memory.device, key=smallest.memory.device.__getitem__)
    if largest == "unfinished gradients":
        return (
            "The gradients of the language model are whole on every GPU until backward has been through the first "
            "pass, whatever the ZeRO stage: take a smaller model, GPUs with more memory, or freeze.language_model."
        )
    if largest in ("activations", "vision activations", "logits", "inputs", "KV cache"):
        return "Shorten the examples: fewer image tiles (max_image_tiles), or shorter steps."
    return "Take more GPUs, GPUs with more memory, or a smaller model, or freeze parts of it (freeze)."


def ds_config(setting: Setting) -> dict[str, Any]:
    """The ds_config of a setting; what the run config decides stays "auto"."""
    zero: dict[str, Any] = {"stage": setting.stage}
    if setting.stage == 3:
        zero |= {
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": setting.max_live,
            "stage3_max_reuse_distance": "auto",
        }
    elif setting.stage:
        zero |= {
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": setting.reduce_bucket,
            "allgather_bucket_size": setting.reduce_bucket,
        }
    on_cpu = {"device": "cpu", "pin_memory": True}
    if setting.offload != "none":
        zero["offload_optimizer"] = on_cpu
    if setting.offload == "all":
        zero["offload_param"] = on_cpu
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    return {
        **dict.fromkeys(auto, "auto"),
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
    }


def overrides(setting: Setting) -> dict[str, Any]:
    """The keys of the run config that go with a setting's ds_config."""
    return {
        "batch_size": setting.micro_batch,
        "gradient_accumulation_steps": setting.accumulation,
        "activation_checkpointing": setting.checkpointing,
    }


def explain(chosen: Candidate, model: ModelGeometry, cluster: Cluster) -> str:
    """Each choice, and what it follows from."""
    setting, memory, host, cost = chosen.setting, chosen.memory, chosen.host, chosen.cost
    activations = memory.device.get("activations", 0) + memory.device.get("vision activations", 0)
    stage = {
        0: "everything fits on every GPU, and gradients are reduced once a step",
        1: "each rank keeps its share of AdamW's state; gradients are reduced once a step",
        2: "each rank keeps its share of AdamW's state and of the gradients",
        3: "each rank keeps its share of the parameters too, and gathers the others when they are needed",
    }[setting.stage]
    lines = [
        f"- `zero_optimization.stage` {setting.stage}: {stage}.",
        f"- `activation_checkpointing` {str(setting.checkpointing).lower()}: activations take "
        f"{activations / GIB:.1f} GiB at the peak.",
        f"- `batch_size` {setting.micro_batch}, `gradient_accumulation_steps` {setting.accumulation}: the fastest that "
        f"fit of those that keep the global batch of {setting.micro_batch * setting.accumulation * setting.ranks}.",
    ]
    if setting.offload != "none":
        lines.append(
            f"- `offload_optimizer`{' and `offload_param`' * (setting.offload == 'all')}: "
            f"{cluster.gpus * memory.offloaded / GIB:.0f} GiB of each node's CPU memory in exchange for GPU memory."
        )
    if setting.stage in (1, 2):
        lines.append(
            f"- `reduce_bucket_size` {setting.reduce_bucket}: two buckets, "
            f"{2 * setting.reduce_bucket * model.width / GIB:.1f} GiB while gradients come in."
        )
    if setting.stage == 3:
        held = "all of them, each gathered once a micro-batch"
        if model.parameters > setting.max_live:
            held = f"{setting.max_live / model.parameters:.0%} of the model, the rest is gathered again"
            if setting.max_live >= model.decoder_parameters:
                held = "the language model, which stays gathered from pass to pass; the rest is gathered again"
        lines.append(f"- `stage3_max_live_parameters` {setting.max_live}: {held}.")
    if len(chosen.passes) > 1:
        gradients = model.width * model.decoder_layer.trainable * model.decoder_layer.copies
        left = ", ".join(f"{nbytes / MIB:.1f}" for nbytes in chosen.passes)
        lines.append(
            f"- {len(chosen.passes)} latent passes: they leave {left} MiB of activations for backward, in their order. "
            f"The language model's gradients are whole on every GPU ({gradients / GIB:.1f} GiB) until the first pass "
            "has given its part, whatever the ZeRO stage."
        )
    lines += [
        f"- Peak {memory.peak / GIB:.1f} of {cluster.gpu_memory:g} GiB a GPU ({_kinds(memory.device)}).",
        f"- In the CPU's memory, while a checkpoint is written: {host.rank_0 / GIB:.1f} GiB on rank "
        f"0 (copied for the save {host.copied / GIB:.1f}, offloaded {host.offloaded / GIB:.1f}, libraries "
        f"{LIBRARIES / GIB:.1f}), {host.node(cluster.gpus) / GIB:.1f} GiB on its node. On CPUs the peak comes on top: "
        f"{(memory.peak + host.rank_0) / GIB:.1f} GiB resident, and what the C library keeps of freed memory.",
        f"- A step of {cost.seconds:.2f} s: {cost.compute:.2f} computing, {cost.exposed:.2f} waiting for other GPUs, "
        f"{cost.optimizer:.2f} in AdamW. Estimated, not measured.",
        f"- While loading, each rank holds the whole model in the CPU's memory: "
        f"{cluster.gpus * loaded_bytes(model) / GIB:.0f} GiB a node.",
    ]
    return "\n".join(lines)


def loaded_bytes(model: ModelGeometry) -> int:
    """Of the whole model as `load_backbone` has it: fp16 runs load fp32."""
    return model.parameters * (2 if model.dtype == torch.bfloat16 else 4)


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
