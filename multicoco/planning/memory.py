"""The peak memory of a training step, for a model, a workload and the engine's settings: docs/planning.md.

A step is walked through in the order of its events, vision tower, latent passes, loss, and back, then the optimizer,
holding and releasing bytes by kind; the peak is the worst moment of the walk.
"""

from collections import Counter
from dataclasses import dataclass

from multicoco.methods.method import Beside
from multicoco.planning.geometry import ModelGeometry, Reader, Workload
from multicoco.planning.held import Gathering, Reduction, Walk, optimizer_share
from multicoco.planning.setting import Setting

SUB_GROUP = 10**9  # numbers that ZeRO-3 updates at a time, DeepSpeed's `sub_group_size`
ALLREDUCE_BUCKET = 5 * 10**8  # numbers that ZeRO-0 flattens at a time


@dataclass(frozen=True)
class Memory:
    """Bytes per rank.

    Attributes:
        device: at the peak, by kind.
        host: in the CPU's memory, by kind; only with offload.
        parts: the most that each of `held.PARTS` ever takes; their worst moments differ, so they add up to more than
            the peak.
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


def peak_memory(model: ModelGeometry, work: Workload, setting: Setting) -> Memory:
    """The memory of a rank in a step that is not the first, so that AdamW's moments and the cache's buffers are there.

    Args:
        work: the stage's longest examples; all rows of a micro-batch are taken to be as long.
    """
    walk, host = Walk(), _hold_states(model, setting)
    for kind in list(host):
        if kind not in _on_host(setting):
            walk.hold(kind, host.pop(kind))
    _hold_inputs(walk, model, work, setting)
    gather, reduction = Gathering(walk, model, work, setting), Reduction(walk, model, setting)
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


def _hold_inputs(walk: Walk, model: ModelGeometry, work: Workload, setting: Setting) -> None:
    rows = setting.micro_batch * work.rows
    if work.tiles:
        walk.hold("inputs", rows * work.tiles * model.tile_bytes)
    walk.hold("inputs", rows * work.columns * 3 * 8)  # ids, mask, labels
    # keys and values in the model's precision, their gradients in fp32; kept from step to step
    cached = rows * work.cached * model.cache_numbers
    if model.reader and work.beside:
        reads, columns = _beside(work.beside, setting)
        cached += reads * columns * model.cache_numbers * model.reader.layer.copies // model.decoder_layer.copies
    walk.hold("KV cache", cached * 2 * (model.width + 4))


def _written_over(model: ModelGeometry, work: Workload, setting: Setting) -> int:
    return setting.micro_batch * work.rows * work.written_over * model.cache_numbers * 2 * model.width


def _with_a_loss(work: Workload, setting: Setting) -> list[int]:
    """Positions of the calls of the model's own head: those that are labelled, and those of words that are said."""
    return [setting.micro_batch * n for n in (work.labelled, work.said) if n]


def _beside(beside: Beside, setting: Setting) -> tuple[int, int]:
    """Rows, one of which writes nothing, and columns of what the objective runs."""
    return setting.micro_batch * beside.rows + 1, beside.read + beside.written


def _forward(walk: Walk, model: ModelGeometry, work: Workload, setting: Setting, gather: Gathering) -> None:
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
    walk.hold("activations", rows * work.columns * hidden)  # last hidden states
    gather.first_use(model.head)
    if model.reader and work.beside:
        _forward_besides(walk, model, model.reader, work.beside, setting, gather)
    for positions in _with_a_loss(work, setting):
        walk.hold("activations", positions * hidden)
        loss = model.trace.loss(positions)
        walk.need("logits", loss.saved + loss.forward)  # saved: with LoRA, the head with its trained rows in it


def _forward_besides(
    walk: Walk, model: ModelGeometry, reader: Reader, beside: Beside, setting: Setting, gather: Gathering
) -> None:
    (rows, columns), hidden = _beside(beside, setting), model.text.hidden_size * model.width
    gather.first_use(reader.rest)
    walk.hold("activations", rows * columns * hidden)  # input embeddings
    layer = model.trace.besides(rows, columns, setting.checkpointing)
    for _ in range(reader.layer.copies):
        gather.first_use(reader.own)
        walk.need("activations", layer.saved + layer.forward)
        walk.hold("activations", layer.saved)
    walk.hold("activations", rows * columns * hidden)  # last hidden states
    walk.hold("activations", (rows - 1) * beside.written * hidden)  # those that write
    loss = model.trace.loss((rows - 1) * beside.written)
    walk.need("logits", loss.saved + loss.forward)


def _backward(
    walk: Walk, model: ModelGeometry, work: Workload, setting: Setting, gather: Gathering, reduction: Reduction
) -> None:
    rows, width = setting.micro_batch * work.rows, model.width
    for positions in _with_a_loss(work, setting):
        loss = model.trace.loss(positions)
        walk.need("logits", loss.saved + loss.backward)
    reduction.finish(model.head)
    if model.is_tied:  # waits for the embedding's
        walk.hold("unfinished gradients", width * model.embedding.trainable)
    gather.last_use(model.head)
    # a decoder that shares the weights has given its part of their gradients before the passes do
    shares = bool(model.reader and work.beside and model.reader.shares)
    if model.reader and work.beside:
        _backward_besides(walk, model, model.reader, work.beside, setting, gather, reduction)
    passes = work.passes
    for number, one in reversed(list(enumerate(passes))):
        layer = model.trace.decoder(rows, one.end - one.start, setting.checkpointing, one.column)
        is_first, is_last = number == 0, number == len(passes) - 1
        has_begun = shares or not is_last
        for _ in range(model.decoder_layer.copies):
            # the sum with what later passes gave is made beside the two
            adding = width * model.decoder_layer.largest if has_begun else 0
            walk.need("activations", layer.backward + adding)
            # autograd hands a gradient on when the last of its passes, the first segment, has given its part
            if not has_begun and not is_first:
                walk.hold("unfinished gradients", width * model.decoder_layer.trainable)
            if is_first:
                reduction.finish(model.decoder_layer, is_held=has_begun)
                walk.release("unfinished gradients", width * model.decoder_layer.trainable if has_begun else 0)
                gather.last_layer_use(model.decoder_layer)
            walk.release("activations", layer.saved)
        if is_last:
            gather.last_pass_done()
    if model.is_tied or shares:
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


def _backward_besides(
    walk: Walk,
    model: ModelGeometry,
    reader: Reader,
    beside: Beside,
    setting: Setting,
    gather: Gathering,
    reduction: Reduction,
) -> None:
    (rows, columns), width = _beside(beside, setting), model.width
    hidden, written = rows * columns * model.text.hidden_size * width, (rows - 1) * beside.written
    loss = model.trace.loss(written)
    walk.need("logits", loss.saved + loss.backward)
    layer = model.trace.besides(rows, columns, setting.checkpointing)
    for _ in range(reader.layer.copies):
        walk.need("activations", layer.backward)
        if reader.shares:  # until the passes have given theirs
            walk.hold("unfinished gradients", width * model.decoder_layer.trainable)
        reduction.finish(reader.own)
        gather.last_use(reader.own)
        walk.release("activations", layer.saved)
    if reader.shares and not model.is_tied:
        walk.hold("unfinished gradients", width * model.embedding.trainable)
    reduction.finish(reader.rest)
    gather.last_use(reader.rest)
    walk.release("activations", 2 * hidden + written * model.text.hidden_size * width)


def _optimizer_step(walk: Walk, model: ModelGeometry, setting: Setting) -> None:
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
