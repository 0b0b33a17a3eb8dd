"""The settings that a run could have, with their estimates, and the one to take."""

from collections.abc import Sequence
from dataclasses import dataclass

from multicoco.config import RunConfig
from multicoco.errors import UserError
from multicoco.planning.cost import Cluster, Cost, step_cost
from multicoco.planning.geometry import ModelGeometry, Workload
from multicoco.planning.held import PARTS
from multicoco.planning.memory import Memory, pass_activations, peak_memory
from multicoco.planning.resident import HostMemory, host_memory
from multicoco.planning.setting import Setting, settings

GIB, MIB = 2**30, 2**20
HEADROOM = 0.1  # of a GPU, for what is not modelled: CUDA's context, NCCL's buffers, fragmentation
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


def candidates(
    config: RunConfig, model: ModelGeometry, workloads: Sequence[Workload], cluster: Cluster
) -> list[Candidate]:
    """Every setting that keeps the run config's global batch, with its estimates, the fastest first."""
    found = []
    for setting in settings(config, model, cluster.ranks):
        memories = [peak_memory(model, work, setting) for work in workloads]
        largest = max(memories, key=lambda memory: memory.peak)
        host = host_memory(model, setting, largest, config.asynchronous_save)
        passes = pass_activations(model, workloads[-1], setting)
        found.append(Candidate(setting, largest, host, passes, step_cost(model, workloads[-1], setting, cluster)))
    return sorted(found, key=lambda candidate: candidate.cost.seconds)


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
        f"{kinds(smallest.memory.device)}. {_remedy(smallest)}"
    )


def kinds(parts: dict[str, int]) -> str:
    """Bytes by kind, in GiB, as far as they show."""
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
