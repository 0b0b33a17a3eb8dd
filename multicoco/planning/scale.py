"""The table of docs/scale.md, InternVL3 from 8 to 4,096 GPUs: `python -m multicoco.planning.scale`.

Beside a step (`planning.cost`) it estimates what a run does around it, and what failures cost. The figures of machines
below are assumptions about a cluster, those of this software are measured (docs/scale.md says where).
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from multicoco.engine.assembly import model_dtype
from multicoco.errors import UserError
from multicoco.planning.candidates import Candidate, candidates, choose
from multicoco.planning.cost import HOST_LINK, Cluster
from multicoco.planning.explanation import loaded_bytes
from multicoco.planning.geometry import ModelGeometry, Workload, geometry_of
from multicoco.planning.held import optimizer_share
from multicoco.planning.plan import markdown_table
from multicoco.planning.tables import (
    GPU_MEMORY,
    GPUS_PER_NODE,
    LATENTS,
    PROMPT,
    TILES,
    WRITTEN,
    internvl3,
    table_config,
)

GPUS = (8, 64, 512, 4096)
MODELS = ("InternVL3-1B", "InternVL3-8B")
GLOBAL_BATCH, RECORDS = 4096, 1_000_000
NOTHING = 0.05  # a share of the time that is no bottleneck

# of the cluster
STORAGE = 20e9  # bytes per second of the shared file system, to all hosts together
HOST_STORAGE = 2e9  # bytes per second to or from one host
FILES = 20_000  # files that it opens or looks up in a second, for all hosts together
HOP = 10e-6  # seconds of a message between two hosts
GPU_HOURS = 50_000  # of one GPU between failures: 419 in 54 days of 16,384 (Llama 3, arXiv:2407.21783, section 3.3.4)

# of this software, measured on one core
IMPORTS = 15.0  # seconds from a process's start to its first line that is about the run, with compiled kernels at hand
RECORD = 16e-6  # seconds to check a record that is kept, shared by all ranks
STORE_REQUEST = 20e-6  # of the key-value store in which the ranks meet
STORE_REQUESTS = 20  # of each rank until all have met
COLLECTIVES = 4  # of a step of ZeRO-1, whatever the number of ranks: token counts, gradients, their norm, weights
LOST_RANK = 60.0  # `lost_rank_seconds`


@dataclass(frozen=True)
class AtScale:
    """A run on so many GPUs.

    Attributes:
        step: seconds.
        parts: of the step, by what they are spent on, with what is more than a share of the smallest cluster's
            computing ("launching").
        sent: GB that a node sends in a step.
        start: seconds from the launch to the first step, on data that an earlier start has read.
        starting: what they are spent on.
        save, blocked: seconds until a checkpoint is on disk, and that training stands still for it.
        between_failures: hours.
        lost: share of the time that saves, failures and what follows them take, saving as often as is best.
        interval: seconds between saves, at best.
    """

    step: float
    parts: dict[str, float]
    sent: float
    start: float
    starting: dict[str, float]
    save: float
    blocked: float
    between_failures: float
    lost: float
    interval: float

    @property
    def bottleneck(self) -> tuple[str, float] | None:
        """What costs most beside computing itself, and its share of the time; None if that is next to nothing."""
        shares = {what: seconds / self.step for what, seconds in self.parts.items() if what != "computing"}
        shares["failures"] = self.lost
        worst = max(shares, key=shares.__getitem__)
        return (worst, shares[worst]) if shares[worst] >= NOTHING else None


def at_scale(model: ModelGeometry, chosen: Candidate, cluster: Cluster, alone: float) -> AtScale:
    """What a setting comes to.

    Args:
        alone: seconds that one GPU would compute for the global batch, as fast as those of the smallest cluster.
    """
    ranks, cost = cluster.ranks, chosen.cost
    latency = COLLECTIVES * 2 * math.ceil(math.log2(ranks)) * HOP
    ideal = min(cost.compute, alone / ranks)
    parts = {
        "computing": ideal,
        "launching": cost.compute - ideal,
        "other GPUs": cost.exposed,
        "messages": latency,
        "AdamW": cost.optimizer,
    }
    step = sum(parts.values())
    weights = loaded_bytes(model)
    starting = {
        "imports": IMPORTS,
        "meeting": STORE_REQUESTS * ranks * STORE_REQUEST,
        "weights": max(weights / HOST_STORAGE, cluster.nodes * weights / STORAGE),
        "data": RECORDS * (RECORD / ranks + 1 / FILES),
    }
    states = 12 * optimizer_share(model, chosen.setting)  # bytes of a rank: weights, two moments
    whole = model.width * model.parameters
    share = max((whole + cluster.gpus * states) / HOST_STORAGE, (whole + ranks * states) / STORAGE)
    save = share + 2 * ranks / FILES
    blocked = (states + whole) / HOST_LINK
    start, between = sum(starting.values()), 3600 * GPU_HOURS / ranks
    interval = max(save, math.sqrt(2 * blocked * between))  # Young 1974; the next one begins when one is on disk
    lost = blocked / interval + (LOST_RANK + start + interval / 2) / between
    return AtScale(step, parts, cost.inter_bytes / 1e9, start, starting, save, blocked, between / 3600, lost, interval)


def rows_of(name: str) -> list[tuple[int, Candidate, AtScale]]:
    """A model at every number of GPUs: the fastest setting that fits, or the smallest if none does."""
    config = table_config(1)
    model = geometry_of(internvl3(name), model_dtype(config), config.freeze.model_dump())
    work = Workload(TILES, PROMPT + TILES * model.tile_tokens, LATENTS, WRITTEN)
    rows: list[tuple[int, Candidate, AtScale]] = []
    alone = 0.0
    for n_gpus in GPUS:
        cluster = Cluster(n_gpus // GPUS_PER_NODE, GPUS_PER_NODE, GPU_MEMORY)
        found = candidates(table_config(GLOBAL_BATCH // n_gpus), model, [work], cluster)
        try:
            best = choose(found, cluster)
        except UserError:
            best = min(found, key=lambda candidate: candidate.memory.peak)
        alone = alone or best.cost.compute * n_gpus
        rows.append((n_gpus, best, at_scale(model, best, cluster, alone)))
    return rows


def table(names: Iterable[str] = MODELS) -> str:
    """Of the models, as Markdown."""
    header = ["model", "GPUs", "setting", "batch x acc.", "s/step", "GB/node", "start", "slowest of it", "save"]
    header += ["blocked", "between failures", "lost", "first bottleneck"]
    lines = []
    for name in names:
        for n_gpus, best, found in rows_of(name):
            slowest = max(found.starting, key=found.starting.__getitem__)
            worst = "-" if found.bottleneck is None else "{} ({:.0%})".format(*found.bottleneck)
            lines.append(
                [
                    *(name, str(n_gpus), best.name + ", ckpt." * best.setting.checkpointing),
                    f"{best.setting.micro_batch} x {best.setting.accumulation}",
                    *(f"{found.step:.2f}", f"{found.sent:.1f}", f"{found.start:.0f} s", slowest),
                    *(f"{found.save:.1f} s", f"{found.blocked:.2f} s", f"{found.between_failures:,.0f} h"),
                    *(f"{found.lost:.2%}", worst),
                ]
            )
    return markdown_table(header, lines)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    print(table())
