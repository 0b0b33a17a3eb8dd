"""The peak memory of a training step, for a model, a workload and the engine's settings: docs/planning.md.

A step is walked through in the order of its events, vision tower, latent passes, loss, and back, then the optimizer,
holding and releasing bytes by kind; the peak is the worst moment of the walk.
"""

from collections import Counter
from dataclasses import dataclass

from multicoco.planning.geometry import ModelGeometry, Part, Workload

SUB_GROUP = 10**9  # numbers that ZeRO-3 updates at a time, DeepSpeed's `sub_group_size`
ALLREDUCE_BUCKET = 5 * 10**8  # numbers that ZeRO-0 flattens at a time
# the parts a report tells apart, and the kinds that `peak_memory` counts under each
PARTS = {
    "parameters": ("parameters", "gathered parameters"),
    "gradients": ("gradients", "unfinished gradients", "buckets"),
    "optimizer": ("optimizer", "optimizer step"),
    "KV cache": ("KV cache",),
    "activations": ("activations",),
    "logits": ("logits",),
    "vision": ("vision activations",),
}


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
        parts: the most that each of PARTS ever takes; their worst moments differ, so they add up to more than the peak.
    """

    device: dict[str, int]
    host: dict[str, int]
    parts: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.device.values())

    @property
    def offloaded(self) -> int:
        return sum(self.host.values())


class _Walk:
    """What is held at a moment, by kind, at the worst one, and the most of each part."""

    def __init__(self) -> None:
        self.held: Counter[str] = Counter()
        self.worst: Counter[str] = Counter()
        self.parts = dict.fromkeys(PARTS, 0)

    def hold(self, kind: str, nbytes: float) -> None:
        self.held[kind] += int(nbytes)
        if self.held.total() > self.worst.total():
            self.worst = self.held.copy()
        for part, kinds in PARTS.items():
            self.parts[part] = max(self.parts[part], sum(self.held[kind] for kind in kinds))

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
    gather, reduction = _Gathering(walk, model, work, setting), _Reduction(walk, model, setting)
    _forward(walk, model, work, setting, gather)
    _backward(walk, model, work, setting, gather, reduction)
    _optimizer_step(walk, model, setting)
    device, offloaded = ({kind: n for kind, n in held.items() if n} for held in (walk.worst, host))
    return Memory(device, offloaded, walk.parts)


def pass_activations(model: ModelGeometry, work: Workload, setting: Setting) -> list[int]:
    """Bytes that each pass over the language model leaves for backward, on a rank."""
    layers = [
        model.trace.decoder(setting.micro_batch * work.rows, one.end - one.start, setting.checkpointing, one.column)
        for one in work.passes
    ]
    return [model.decoder_layer.copies * layer.saved for layer in layers]


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
    rows = setting.micro_batch * work.rows
    if work.tiles:
        walk.hold("inputs", rows * work.tiles * model.tile_bytes)
    walk.hold("inputs", rows * work.columns * 3 * 8)  # ids, mask, labels
    # keys and values in the model's precision, their gradients in fp32; kept from step to step
    walk.hold("KV cache", rows * work.cached * model.cache_numbers * 2 * (model.width + 4))


def _written_over(model: ModelGeometry, work: Workload, setting: Setting) -> int:
    return setting.micro_batch * work.rows * work.written_over * model.cache_numbers * 2 * model.width


class _Gathering:
    """The whole parameters that ZeRO-3 has at a time: every part from its first use to its last, where all may live at
    once; else no more than `stage3_max_live_parameters`, all through forward and backward.

    DeepSpeed 0.19 counts a module's backward calls from its latest forward call. After several passes the count is
    right for the last one alone, and the layers gathered for backward through the others stay until its end;
    checkpointing, which runs forward again before each, sets the count right.
    """

    def __init__(self, walk: _Walk, model: ModelGeometry, work: Workload, setting: Setting):
        self.walk, self.width = walk, model.width
        is_sharded = setting.stage == 3 and setting.ranks > 1
        self.keeps_all = is_sharded and model.parameters <= setting.max_live
        self.keeps_layers = is_sharded and len(work.segments) > 1 and not setting.checkpointing
        if is_sharded and not self.keeps_all:
            walk.hold("gathered parameters", model.width * setting.max_live)
        self.beyond_live = 0 if self.keeps_all else max(0, model.decoder_parameters - setting.max_live)

    def first_use(self, part: Part) -> None:
        if self.keeps_all:
            self.walk.hold("gathered parameters", self.width * part.parameters)

    def last_pass_done(self) -> None:
        if self.keeps_layers:
            self.walk.hold("gathered parameters", self.width * self.beyond_live)

    def last_layer_use(self, layer: Part) -> None:
        if not self.keeps_layers:
            self.last_use(layer)

    def last_use(self, part: Part) -> None:
        if self.keeps_all:
            self.walk.release("gathered parameters", self.width * part.parameters)


class _Reduction:
    """Where gradients go as they are completed, in the last micro-batch of a step: ZeRO-0 keeps them, the others a
    share. One that is larger than a bucket stays until the next comes, which may be passes later."""

    def __init__(self, walk: _Walk, model: ModelGeometry, setting: Setting):
        self.walk, self.width, self.setting = walk, model.width, setting
        self.share = model.width * optimizer_share(model, setting)
        self.waiting = 0  # numbers
        self.has_begun = False
        on_device, several = setting.offload == "none", setting.accumulation > 1
        self.takes_share = setting.stage in (1, 2) and on_device
        self.adds_up = setting.stage == 0 and not several
        if several and (setting.stage == 0 or (setting.stage == 1 and on_device)):
            walk.hold("gradients", model.width * model.trainable)  # the earlier micro-batches'; ZeRO-1 reduces once
        elif several and setting.stage == 2 and on_device:
            walk.hold("gradients", self.share)

    def finish(self, part: Part, is_held: bool = False) -> None:
        """The gradients of a part are complete; is_held where they have been counted already."""
        if not part.trainable:
            return
        if not self.has_begun:
            self._begin()
        arriving, reduced = 0 if is_held else part.largest, self.waiting or part.largest
        self.walk.need("gradients", self.width * arriving + self._copy_bytes() * reduced)
        self.walk.release("gradients", self.width * self.waiting)
        self.waiting = part.largest if self.setting.stage and part.largest > self.setting.reduce_bucket else 0
        self.walk.hold("gradients", self.width * (part.trainable if self.adds_up else self.waiting))

    def _begin(self) -> None:
        self.has_begun = True
        if self.setting.stage in (1, 2):  # two: one fills while the other is on its way
            self.walk.hold("buckets", 2 * self.width * self.setting.reduce_bucket)
        if self.takes_share:
            self.walk.hold("gradients", self.share)

    def _copy_bytes(self) -> float:
        """For each number that is reduced: what ZeRO-3's reduce-scatter sends, then, for offload, fp64 for the norm of
        what the rank keeps."""
        is_sharded = self.setting.stage == 3
        sent = self.width if is_sharded and self.setting.ranks > 1 else 0
        norm = 8 / (self.setting.ranks if is_sharded else 1) if self.setting.offload != "none" else 0
        return max(sent, norm)

    def done(self) -> None:
        self.walk.release("gradients", self.width * self.waiting)
        if self.has_begun and self.setting.stage in (1, 2):
            self.walk.release("buckets", 2 * self.width * self.setting.reduce_bucket)


def _forward(walk: _Walk, model: ModelGeometry, work: Workload, setting: Setting, gather: _Gathering) -> None:
    rows, hidden = setting.micro_batch * work.rows, model.text.hidden_size * model.width
    gather.first_use(model.embedding)
    if model.encoded:
        vision = model.trace.vision(max(1, rows * work.tiles), setting.checkpointing)
        for _ in range(model.vision_layer.copies):
            gather.first_use(model.vision_layer)
            walk.need("vision activations", vision.saved + vision.forward)
            walk.hold("vision activations", vision.saved)
        gather.first_use(model.projector)
    elif model.projects_kept:
        projector = model.trace.projector(max(1, rows * work.tiles))
        gather.first_use(model.projector)
        walk.need("vision activations", projector.saved + projector.forward)
        walk.hold("vision activations", projector.saved)
    walk.hold("activations", rows * work.columns * hidden)  # input embeddings
    for number, one in enumerate(work.passes):
        layer = model.trace.decoder(rows, one.end - one.start, setting.checkpointing, one.column)
        for _ in range(model.decoder_layer.copies):
            if number == 0:
                gather.first_use(model.decoder_layer)
            walk.need("activations", layer.saved + layer.forward)
            walk.hold("activations", layer.saved)
    # keys and values that a pass has written over, until its backward puts them back
    walk.hold("KV cache", _written_over(model, work, setting))
    gather.first_use(model.head)
    walk.hold("activations", rows * work.columns * hidden)  # last hidden states
    walk.hold("activations", setting.micro_batch * work.labelled * hidden)  # the labelled ones
    loss = model.trace.loss(setting.micro_batch * work.labelled)
    walk.need("logits", loss.saved + loss.forward)  # saved: with LoRA, the head with its trained rows in it


def _backward(
    walk: _Walk, model: ModelGeometry, work: Workload, setting: Setting, gather: _Gathering, reduction: _Reduction
) -> None:
    rows, width = setting.micro_batch * work.rows, model.width
    loss = model.trace.loss(setting.micro_batch * work.labelled)
    walk.need("logits", loss.saved + loss.backward)
    reduction.finish(model.head)
    if model.is_tied:  # waits for the embedding's
        walk.hold("unfinished gradients", width * model.embedding.trainable)
    gather.last_use(model.head)
    passes = work.passes
    for number, one in reversed(list(enumerate(passes))):
        layer = model.trace.decoder(rows, one.end - one.start, setting.checkpointing, one.column)
        is_first, is_last = number == 0, number == len(passes) - 1
        for _ in range(model.decoder_layer.copies):
            # the sum with what later passes gave is made beside the two
            adding = 0 if is_last else width * model.decoder_layer.largest
            walk.need("activations", layer.backward + adding)
            # autograd hands a gradient on when the last of its passes, the first segment, has given its part
            if is_last and not is_first:
                walk.hold("unfinished gradients", width * model.decoder_layer.trainable)
            if is_first:
                reduction.finish(model.decoder_layer, is_held=not is_last)
                walk.release("unfinished gradients", 0 if is_last else width * model.decoder_layer.trainable)
                gather.last_layer_use(model.decoder_layer)
            walk.release("activations", layer.saved)
        if is_last:
            gather.last_pass_done()
    if model.is_tied:
        walk.need("unfinished gradients", width * model.embedding.trainable)
        walk.release("unfinished gradients")
    reduction.finish(model.embedding)
    gather.last_use(model.embedding)
    if model.encoded:
        reduction.finish(model.projector)
        gather.last_use(model.projector)
        vision = model.trace.vision(max(1, rows * work.tiles), setting.checkpointing)
        for _ in range(model.vision_layer.copies):
            walk.need("vision activations", vision.backward)
            walk.release("vision activations", vision.saved)
            reduction.finish(model.vision_layer)
            gather.last_use(model.vision_layer)
    elif model.projects_kept:
        walk.need("vision activations", model.trace.projector(max(1, rows * work.tiles)).backward)
        reduction.finish(model.projector)
        gather.last_use(model.projector)
    walk.release("KV cache", _written_over(model, work, setting))
    for kind in ("activations", "vision activations", "gathered parameters", "unfinished gradients"):
        walk.release(kind)
    reduction.done()


def _optimizer_step(walk: _Walk, model: ModelGeometry, setting: Setting) -> None:
    width, share, is_half = model.width, optimizer_share(model, setting), model.width < 4
    if setting.offload != "none":  # the CPU's AdamW works in place
        return
    if setting.stage == 0:
        walk.need("optimizer step", width * min(model.trainable, ALLREDUCE_BUCKET))  # one rank flattens too
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
