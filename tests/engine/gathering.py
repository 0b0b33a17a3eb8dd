"""Run by torchrun on several ranks: counts the bytes that ZeRO-3 gathers in each step of training, and saves them."""

import json
import sys
from pathlib import Path

import deepspeed.comm
import torch.distributed as dist

from multicoco.config import load_config
from multicoco.process import end_process
from multicoco.trainer import Trainer


class GatheredBytes:
    """Counts at DeepSpeed's communication layer, below everything that could ask for a gather."""

    def __init__(self):
        self.bytes = 0
        backend = deepspeed.comm.comm.cdb
        for name in ("all_gather", "all_gather_into_tensor", "all_gather_coalesced"):
            setattr(backend, name, self._counted(getattr(backend, name)))

    def _counted(self, function):
        def counted(*args, **kwargs):
            outputs = kwargs.get("output_tensor", kwargs.get("output_tensors", args[0] if args else None))
            for output in outputs if isinstance(outputs, list | tuple) else [outputs]:
                self.bytes += output.numel() * output.element_size()
            return function(*args, **kwargs)

        return counted


def main(config_path: str, out: Path, overrides: list[str]) -> None:
    trainer = Trainer(load_config(config_path, overrides))
    counter, steps, evaluations = GatheredBytes(), [], []
    train_step, evaluate = trainer._train_step, trainer._evaluate

    def counted_step(micro_batches: list[dict]):
        before = counter.bytes
        result = train_step(micro_batches)
        images = sum(batch["pixel_values"] is not None for batch in micro_batches)
        steps.append({"stage": trainer.stage, "bytes": counter.bytes - before, "images": images})
        return result

    def noted_evaluation(*args):
        evaluations.append(len(steps))
        return evaluate(*args)

    trainer._train_step, trainer._evaluate = counted_step, noted_evaluation
    trainer.run()
    parameters = trainer.reasoner.parameters()
    model_bytes = sum(parameter.ds_numel * parameter.element_size() for parameter in parameters)
    if dist.get_rank() == 0:
        out.write_text(json.dumps({"model_bytes": model_bytes, "steps": steps, "evaluated_after": evaluations}))
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    end_process(0)
