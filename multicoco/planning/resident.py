"""What a rank holds in the CPU's memory: its libraries, what is offloaded, and the copy that a save writes from.

On CPUs that is the memory of the training step as well, and the sum is what the system shows as resident.
"""

from dataclasses import dataclass

from multicoco.planning.geometry import ModelGeometry
from multicoco.planning.held import optimizer_share
from multicoco.planning.memory import Memory
from multicoco.planning.setting import Setting

# Python, PyTorch's CPU build, transformers, DeepSpeed: 450 MiB when they are loaded, the rest (threads, scratch memory)
# with the first step; measured by benchmarks/plan_memory.py
LIBRARIES = 530 * 2**20


@dataclass(frozen=True)
class HostMemory:
    """Bytes of a rank in the CPU's memory while a checkpoint is written beside the training.

    Attributes:
        offloaded: of the model and the optimizer, the whole time.
        copied: what rank 0 copies for a save; it writes the weights as well.
        copied_by_others: what any other rank does.
    """

    offloaded: int
    copied: int
    copied_by_others: int

    @property
    def rank_0(self) -> int:
        return LIBRARIES + self.offloaded + self.copied

    def node(self, ranks: int) -> int:
        """Of so many ranks, rank 0 among them."""
        return self.rank_0 + (ranks - 1) * (LIBRARIES + self.offloaded + self.copied_by_others)


def host_memory(model: ModelGeometry, setting: Setting, memory: Memory, asynchronous: bool) -> HostMemory:
    """With `asynchronous_save` or without: then a save waits, and rank 0 gathers the weights alone."""
    weights, trained = model.width * model.saved_parameters, model.width * model.parameters
    if not asynchronous:
        return HostMemory(memory.offloaded, weights, 0)
    # fp32 master weights, unless fp32 parameters are their own, and AdamW's moments
    states = optimizer_share(model, setting) * (12 if setting.stage or model.width < 4 else 8)
    if setting.stage == 0:  # rank 0 alone has DeepSpeed's files
        return HostMemory(memory.offloaded, weights + trained + states, 0)
    if setting.stage < 3:  # the weights for `from_pretrained`, and DeepSpeed's
        return HostMemory(memory.offloaded, weights + trained + states, states)
    frozen = model.width * -(-(model.parameters - model.trainable) // setting.ranks)
    return HostMemory(memory.offloaded, weights + states + frozen, states + frozen)
