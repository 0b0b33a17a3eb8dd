"""The peak memory of a training step, for a model, a workload and the engine's settings: docs/planning.md.

A step is walked through in the order of its events, vision tower, latent passes, loss, and back, then the optimizer,
holding and releasing bytes by kind; the peak is the worst moment of the walk.
"""

from collections import Counter
from dataclasses import dataclass

from multicoco.planning.geometry import ModelGeometry, Part, Workload

SUB_GROUP = 10**9  # numbers that ZeRO-3 updates at a time, DeepSpeed's `sub_group_size`
ALLREDUCE_BUCKET = 5 * 10**8  # numbers that ZeRO-0 flattens at a time


@dataclass(frozen=True)
class Setting:
    """What the planner chooses.

    Attributes:
        stage: of ZeRO.
        offload: what lies in the CPU's memory: "none", "optimizer", or "all", parameters too.
        checkpointing: of activations.
        micro_batch: examples per rank and pass.
        accumulation: micro-batches per optimizer step.
        ranks: processes, one GPU each.
        reduce_bucket, max_live: numbers in a bucket of gradients, and gathered at a time; of the ds_config.
        foreach: AdamW updates all tensors at once, as on GPUs, or one after the other, as on CPUs.
    """

    stage: int
    offload: str
    checkpointing: bool
    micro_batch: int
    accumulation: int
    ranks: int
    reduce_bucket: int
    max_live: int
    foreach: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes per rank.

    Attributes:
        device: at the peak, by kind.
        host: in the CPU's memory, by kind; only with offload.
    """

    device: dict[str, int]
    host: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.device.values())

    @property
    def offloaded(self) -> int:
        return sum(self.host.values())


class _Walk:
    """What is held at a moment, by kind, and the most that ever was."""

    def __init__(self):
        self.held: Counter[str] = Counter()
        self.worst: Counter[str] = Counter()

    def hold(self, kind: str, nbytes: float) -> None:
        self.held[kind] += int(nbytes)
        if self.held.total() > self.worst.total():
            self.worst = self.held.copy()

    def release(self, kind: str, nbytes: float | None = None) -> None:
        """Everything of a kind, or some."""
        self.held[kind] -= self.held[kind] if nbytes is None else int(nbytes)

    def need(self, kind: str, nbytes: float) -> None:
        """For a moment."""
        self.hold(kind, nbytes)
        self.release(kind, nbytes)


def peak_memory(model: ModelGeometry, work: Workload, setting: Setting) -> Memory:
    """The memory of a rank in a step that is not the first, so that AdamW's moments and the cache's buffers are there.

    Args:
        work: the stage's longest examples; all rows of a micro-batch are taken to be as long.
    """
    walk, host = _Walk(), _hold_states(model, setting)
    for kind in list(host):
        if kind not in _on_host(setting):
            walk.hold(kind, host.pop(kind))
    _hold_inputs(walk, model, work, setting)
    gather = _Gathering(walk, model, setting)
    _forward(walk, model, work, setting, gather)
    _backward(walk, model, work, setting, gather)
    _optimizer_step(walk, model, setting)
    return Memory({kind: n for kind, n in walk.worst.items() if n}, {kind: n for kind, n in host.items() if n})


def optimizer_share(model: ModelGeometry, setting: Setting) -> int:
    """Trained numbers of which a rank keeps the optimizer's state."""
    return -(-model.trainable // setting.ranks) if setting.stage else model.trainable


def _on_host(setting: Setting) -> set[str]:
    return {
        "none": set(),
        "optimizer": {"optimizer", "offloaded gradients"},
        "all": {"parameters", "optimizer", "offloaded gradients"},
    }[setting.offload]


def _hold_states(model: ModelGeometry, setting: Setting) -> Counter[str]:
    """What lasts from step to step, wherever it lies."""
    width, share, is_half = model.width, optimizer_share(model, setting), model.width < 4
    states: Counter[str] = Counter()
    is_sharded = setting.stage == 3
    states["parameters"] = width * (-(-model.parameters // setting.ranks) if is_sharded else model.parameters)
    # ZeRO-1, 2 and 3 keep an fp32 copy of their share even of fp32 parameters
    states["optimizer"] = share * (8 + (4 if is_half or setting.stage else 0))
    if setting.stage == 3:
        states["gradients"] = width * share
        states["buckets"] = width * setting.reduce_bucket
    if setting.offload != "none":
        states["offloaded gradients"] = 4 * share
        if setting.stage == 3:
            states["offloaded gradients"] += states.pop("gradients")
        else:
            states["optimizer"] += width * share  # the half-precision copy on its way back
            several = setting.accumulation > 1
            states["offloaded gradients"] += width * (model.largest + (share if several else 0))
            states["buckets"] = width * model.largest
    return states


def _hold_inputs(walk: _Walk, model: ModelGeometry, work: Workload, setting: Setting) -> None:
    rows = setting.micro_batch
    if work.tiles:
        walk.hold("inputs", rows * work.tiles * model.tile_bytes)
    walk.hold("inputs", rows * work.length * 3 * 8)  # ids, mask, labels
    # keys and values in the model's precision, their gradients in fp32; kept from step to step
    walk.hold("KV cache", rows * work.length * model.cache_numbers * 2 * (model.width + 4))


class _Gathering:
    """The whole parameters that ZeRO-3 has at a time: every part from its first use to its last, where all may live at
    once; else no more than `stage3_max_live_parameters`, all through forward and backward."""

    def __init__(self, walk: _Walk, model: ModelGeometry, setting: Setting):
        self.walk, self.width = walk, model.width
        self.is_sharded = setting.stage == 3 and setting.ranks > 1
        self.keeps_all = self.is_sharded and model.parameters <= setting.max_live
        if self.is_sharded and not self.keeps_all:
            walk.hold("gathered parameters", model.width * setting.max_live)

    def first_use(self, part: Part) -> None:
        if self.keeps_all:
            self.walk.hold("gathered parameters", self.width * part.parameters)

    def last_use(self, part: Part) -> None:
        if self.keeps_all:
            self.walk.release("gathered parameters", self.width * part.parameters)


def _forward(walk: _Walk, model: ModelGeometry, work: Workload, setting: Setting, gather: _Gathering) -> None:
    rows, hidden = setting.micro_batch, model.text.hidden_size * model.width
    gather.first_use(model.embedding)
    if model.sees_images:
        vision = model.trace.vision(max(1, rows * work.tiles), setting.checkpointing)
        for _ in range(model.vision_layer.copies):
            gather.first_use(model.vision_layer)
            walk.need("activations", vision.saved + vision.forward)
            walk.hold("vision activations", vision.saved)
        gather.first_use(model.projector)
    walk.hold("activations", rows * work.length * hidden)  # input embeddings
    for number, columns in enumerate(work.segments):
        layer = model.trace.decoder(rows, columns, setting.checkpointing)
        for _ in range(model.decoder_layer.copies):
            if number == 0:
                gather.first_use(model.decoder_layer)
            walk.need("activations", layer.saved + layer.forward)
            walk.hold("activations", layer.saved)
    gather.first_use(model.head)
    walk.hold("activations", rows * work.length * hidden)  # last hidden states
    walk.hold("activations", rows * work.written * hidden)  # the labelled ones
    walk.need("logits", model.trace.loss(rows * work.written).forward)


def _backward(walk: _Walk, model: ModelGeometry, work: Workload, setting: Setting, gather: _Gathering) -> None:
    rows, width = setting.micro_batch, model.width
    _hold_reduction(walk, model, setting)
    walk.need("logits", model.trace.loss(rows * work.written).backward)
    _finish_gradient(walk, model, model.head, setting)
    if model.is_tied:  # waits for the embedding's
        walk.hold("unfinished gradients", width * model.embedding.trainable)
    gather.last_use(model.head)
    segments = work.segments
    for number, columns in reversed(list(enumerate(segments))):
        layer = model.trace.decoder(rows, columns, setting.checkpointing)
        is_first, is_last = number == 0, number == len(segments) - 1
        for _ in range(model.decoder_layer.copies):
            # the sum with what later passes gave is made beside the two
            adding = 0 if is_last else width * model.decoder_layer.largest * bool(model.decoder_layer.trainable)
            walk.need("activations", layer.backward + adding)
            walk.release("activations", layer.saved)
            # autograd hands a gradient on when the last of its passes, the first segment, has given its part
            if is_last and not is_first:
                walk.hold("unfinished gradients", width * model.decoder_layer.trainable)
            if is_first:
                if not is_last:
                    walk.release("unfinished gradients", width * model.decoder_layer.trainable)
                _finish_gradient(walk, model, model.decoder_layer, setting)
                gather.last_use(model.decoder_layer)
    if model.is_tied:
        walk.need("unfinished gradients", width * model.embedding.trainable)
        walk.release("unfinished gradients")
    _finish_gradient(walk, model, model.embedding, setting)
    gather.last_use(model.embedding)
    if model.sees_images:
        _finish_gradient(walk, model, model.projector, setting)
        gather.last_use(model.projector)
        vision = model.trace.vision(max(1, rows * work.tiles), setting.checkpointing)
        for _ in range(model.vision_layer.copies):
            walk.need("vision activations", vision.backward)
            walk.release("vision activations", vision.saved)
            _finish_gradient(walk, model, model.vision_layer, setting)
            gather.last_use(model.vision_layer)
    for kind in ("activations", "vision activations", "gathered parameters", "inputs", "unfinished gradients"):
        walk.release(kind)
    if setting.stage in (1, 2):
        walk.release("buckets", 2 * width * setting.reduce_bucket)


def _hold_reduction(walk: _Walk, model: ModelGeometry, setting: Setting) -> None:
    """What there is while gradients come in, in the last micro-batch of a step."""
    width, share, several = model.width, optimizer_share(model, setting), setting.accumulation > 1
    if setting.stage in (1, 2):
        walk.hold("buckets", 2 * width * setting.reduce_bucket)  # two: one fills while the other is on its way
        if setting.offload == "none":
            walk.hold("gradients", width * share)
            if several and setting.stage == 2:
                walk.hold("gradients", width * share)  # the earlier micro-batches'
    if several and (setting.stage == 0 or (setting.stage == 1 and setting.offload == "none")):
        walk.hold("gradients", width * model.trainable)  # ZeRO-1 reduces once a step, until then they are whole


def _finish_gradient(walk: _Walk, model: ModelGeometry, part: Part, setting: Setting) -> None:
    """A part's gradient is complete: ZeRO-0 keeps it, the others reduce and drop it."""
    if setting.stage == 0:
        if setting.accumulation == 1:
            walk.hold("gradients", model.width * part.trainable)
    elif part.trainable:
        copies = 2 if setting.ranks > 1 and setting.stage == 3 else 1  # reduce-scatter's input is another
        walk.need("gradients", copies * model.width * part.largest)


def _optimizer_step(walk: _Walk, model: ModelGeometry, setting: Setting) -> None:
    width, share, is_half = model.width, optimizer_share(model, setting), model.width < 4
    if setting.offload != "none":  # the CPU's AdamW works in place
        return
    if setting.stage == 0:
        if setting.ranks > 1:
            walk.need("optimizer step", width * min(model.trainable, ALLREDUCE_BUCKET))
        fp32_gradients = 4 * share if is_half else 0
        group, largest = share, model.largest
    else:
        group = min(share, SUB_GROUP) if setting.stage == 3 else share
        largest = group  # a share is one flat tensor
        flat, fp32_gradients = width * group, 4 * group
        if is_half:
            walk.need("optimizer step", flat + fp32_gradients)
        if setting.stage < 3:  # the parts of the flat tensor go once it is made
            walk.need("optimizer step", flat)
            walk.release("gradients")
    # AdamW's square root of the second moment; the loop over tensors divides it into one more
    temporary = 4 * group if setting.foreach else 8 * largest
    walk.need("optimizer step", fp32_gradients + temporary)
