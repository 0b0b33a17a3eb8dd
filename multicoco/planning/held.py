"""What is held at a moment of a training step: bytes by kind, and what ZeRO gathers and reduces on the way."""

from collections import Counter

from multicoco.planning.geometry import ModelGeometry, Part, Workload
from multicoco.planning.setting import Setting

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


def optimizer_share(model: ModelGeometry, setting: Setting) -> int:
    """Trained numbers of which a rank keeps the optimizer's state."""
    return -(-model.trainable // setting.ranks) if setting.stage else model.trainable


class Walk:
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


class Gathering:
    """The whole parameters that ZeRO-3 has at a time: every part from its first use to its last, where all may live at
    once; else no more than `stage3_max_live_parameters`, all through forward and backward.

    DeepSpeed 0.19 counts a module's backward calls from its latest forward call. After several passes the count is
    right for the last one alone, and the layers gathered for backward through the others stay until its end;
    checkpointing, which runs forward again before each, sets the count right.
    """

    def __init__(self, walk: Walk, model: ModelGeometry, work: Workload, setting: Setting):
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


class Reduction:
    """Where gradients go as they are completed, in the last micro-batch of a step: ZeRO-0 keeps them, the others a
    share. One that is larger than a bucket stays until the next comes, which may be passes later."""

    def __init__(self, walk: Walk, model: ModelGeometry, setting: Setting):
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
