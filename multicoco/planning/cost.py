"""What a training step moves between GPUs, and how long it takes: an estimate, from the machine's figures.

A pass over the language model is as slow as the slowest of computing, reading the weights, and what Python does to
start it: the first for the prefill, the others for a single latent column. Latency of collectives is not modelled.
"""

from dataclasses import dataclass

from multicoco.planning.geometry import ModelGeometry, Part, Workload
from multicoco.planning.held import optimizer_share
from multicoco.planning.setting import Setting
from multicoco.planning.trace import Trace

EFFICIENCY = 0.4  # of the peak, in long segments
KERNEL_SECONDS = 5e-6  # from one launch to the next, where the GPU waits for Python
# ZeRO-3's hooks around the modules of one layer in one pass; measured on a core of an AMD EPYC, DeepSpeed 0.19
HOOK_SECONDS = {"forward": 2.4e-3, "backward": 1.0e-3}
OPTIMIZER_BYTES = 28  # read and written by AdamW for each number: fp32 weight, two moments, gradient
HOST_LINK = 50e9  # bytes per second between a GPU and the CPU's memory
HOST_MEMORY = 300e9  # bytes per second of a node's CPU memory, shared by its GPUs


@dataclass(frozen=True)
class Cluster:
    """The machines. The defaults are those of H100 SXM nodes.

    Attributes:
        nodes, gpus: nodes, and GPUs of each.
        gpu_memory: GiB of a GPU.
        intra_node: GB/s from a GPU to others of its node.
        inter_node: GB/s from a node to others.
        tflops: peak of a GPU in the run's precision.
        gpu_bandwidth: GB/s of a GPU's own memory.
    """

    nodes: int
    gpus: int
    gpu_memory: float
    intra_node: float = 450
    inter_node: float = 400
    tflops: float = 989
    gpu_bandwidth: float = 3350

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Cost:
    """Of one optimizer step.

    Attributes:
        seconds: in all.
        compute, exposed, optimizer: seconds of the passes, of communication that nothing hides, and of the update.
        intra_bytes: that a GPU sends within its node.
        inter_bytes: that a node sends to others.
    """

    seconds: float
    compute: float
    exposed: float
    optimizer: float
    intra_bytes: float
    inter_bytes: float


def step_cost(model: ModelGeometry, work: Workload, setting: Setting, cluster: Cluster) -> Cost:
    """The time and traffic of one optimizer step."""
    forward, backward, hiding = _passes(model, work, setting, cluster)
    compute = setting.accumulation * (forward + backward)
    gathered, reduced = _volumes(model, work, setting)
    ring = (setting.ranks - 1) / setting.ranks
    seconds_per_byte = max(
        1 / (cluster.intra_node * 1e9) if cluster.gpus > 1 else 0,
        1 / (cluster.inter_node * 1e9) if cluster.nodes > 1 else 0,
    )
    hidden_gathers = compute if setting.stage == 3 else 0  # prefetched; ZeRO-1 and 2 gather after the update
    hidden_reductions = (setting.accumulation if setting.stage > 1 else min(1, setting.stage)) * hiding
    exposed = max(0, gathered * ring * seconds_per_byte - hidden_gathers)
    exposed += max(0, reduced * ring * seconds_per_byte - hidden_reductions)
    optimizer = _optimizer_seconds(model, setting, cluster)
    sent = (gathered + reduced) * ring
    return Cost(
        compute + exposed + optimizer,
        compute,
        exposed,
        optimizer,
        # of a ring's links, one in each node leads out of it
        sent * (1 if cluster.nodes == 1 else (cluster.gpus - 1) / cluster.gpus),
        sent if cluster.nodes > 1 else 0,
    )


def _volumes(model: ModelGeometry, work: Workload, setting: Setting) -> tuple[float, float]:
    """Bytes that are gathered, and reduced, in a step; a ring moves (n - 1) / n of them through every GPU."""
    weights, gradients = model.width * model.called_parameters, model.width * model.trainable
    if setting.stage == 0:
        return 0, 2 * gradients  # an all-reduce is a reduce-scatter and an all-gather
    if setting.stage < 3:  # they reduce buckets of several ranks with all-reduce; ZeRO-1 once a step
        return gradients, 2 * gradients * (setting.accumulation if setting.stage == 2 else 1)
    if model.parameters > setting.max_live:
        # forward and backward, of every pass if the language model cannot stay
        decoder = model.width * model.decoder_parameters
        passes = len(work.segments) if model.decoder_parameters > setting.max_live else 1
        passes += bool(passes > 1 and model.reader and model.reader.shares)
        weights = 2 * (weights + (passes - 1) * decoder)
    return setting.accumulation * weights, setting.accumulation * gradients


def _passes(model: ModelGeometry, work: Workload, setting: Setting, cluster: Cluster) -> tuple[float, float, float]:
    """Seconds of forward and backward of a micro-batch, and of what is left of backward when gradients come in."""
    rows, recomputed = setting.micro_batch * work.rows, int(setting.checkpointing)
    flops, bandwidth = cluster.tflops * 1e12 * EFFICIENCY, cluster.gpu_bandwidth * 1e9

    def seconds(operations: float, nbytes: float, part: Part, kernels: int, direction: str) -> float:
        hooks = HOOK_SECONDS[direction] if setting.stage == 3 else 0
        return max(operations / flops, nbytes / bandwidth, part.copies * (kernels * KERNEL_SECONDS + hooks))

    def layers(
        part: Part, columns: int, attended: float, width: int, trace: Trace, weight_gradients: bool
    ) -> tuple[float, float]:
        operations = part.copies * (2 * columns * part.parameters + 4 * columns * attended * width)
        weights = part.copies * part.parameters * model.width
        # gradients of the inputs, and of the weights where they are trained
        trained = part.trainable / part.parameters if weight_gradients and part.parameters else 0
        factor = (1 + trained + recomputed) if trace.backward_kernels else 0
        there = seconds(operations, weights, part, trace.forward_kernels, "forward")
        if not factor:
            return there, 0
        return there, seconds(factor * operations, factor * weights, part, trace.backward_kernels, "backward")

    forward = backward = hiding = 0.0
    if tile := model.encoded:
        tiles = max(1, rows * work.tiles)
        trace, patches = model.trace.vision(tiles, setting.checkpointing), tile.patches
        there, back = layers(model.vision_layer, tiles * patches, patches, tile.width, trace, True)
        forward, backward, hiding = there, back, back
    for number, one in enumerate(work.passes):
        columns = one.end - one.start
        trace = model.trace.decoder(rows, columns, setting.checkpointing, one.column)
        attended = one.column + columns / 2
        weight_gradients = columns > 1 or number < 2  # those of all latent columns are made at once
        width = model.text.hidden_size
        there, back = layers(model.decoder_layer, rows * columns, attended, width, trace, weight_gradients)
        forward, backward = forward + there, backward + back
        hiding += back if number == 0 else 0
    written = setting.micro_batch * (work.labelled + work.said)
    if model.reader and (beside := work.beside):
        reads, columns = setting.micro_batch * beside.rows + 1, beside.read + beside.written
        trace = model.trace.besides(reads, columns, setting.checkpointing)
        width = model.text.hidden_size
        there, back = layers(model.reader.layer, reads * columns, columns / 2, width, trace, True)
        forward, backward = forward + there, backward + back
        written += setting.micro_batch * beside.rows * beside.written
    head = 2 * written * model.text.vocab_size * model.text.hidden_size / flops
    return forward + head, backward + 3 * head, hiding


def _optimizer_seconds(model: ModelGeometry, setting: Setting, cluster: Cluster) -> float:
    share = optimizer_share(model, setting)
    if setting.offload == "none":
        return share * OPTIMIZER_BYTES / (cluster.gpu_bandwidth * 1e9)
    moved = 2 * model.width * share / HOST_LINK  # gradients there, weights back
    return moved + cluster.gpus * share * OPTIMIZER_BYTES / HOST_MEMORY
