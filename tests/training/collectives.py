"""For the ranks of a run: what they tell each other in a steady step, counted where PyTorch starts it."""

import json
from collections import Counter
from pathlib import Path

import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multicoco.training import trainer as trainer_module

STEADY = 4  # DeepSpeed has allocated and traced what it will


class Collectives(TorchDispatchMode):
    """By their names, how many there were and how many numbers they were given."""

    def __init__(self):
        super().__init__()
        self.calls, self.numbers = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = function._schema.name.removeprefix("c10d::")
            self.calls[name] += 1
            self.numbers[name] += sum(x.numel() for x in tree_leaves(args) if hasattr(x, "numel"))
        return function(*args, **(kwargs or {}))


def count_into(out: Path) -> None:
    """Makes the run of this process write what its rank 0 has counted."""
    step, done = trainer_module.train_step, []

    def counted(*arguments):
        done.append(1)
        with Collectives() as counts:
            stepped = step(*arguments)
        if len(done) == STEADY and dist.get_rank() == 0:
            out.write_text(json.dumps({"calls": counts.calls, "numbers": counts.numbers}))
        return stepped

    trainer_module.train_step = counted
