"""Run by torchrun on several ranks: counts the bytes that ZeRO-3 gathers in each step of training, and saves them."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from common import Gathers

from multicoco.config import load_config
from multicoco.process import end_process
from multicoco.training import trainer as trainer_module
from multicoco.training.trainer import Trainer


def main(config_path: str, out: Path, overrides: list[str]) -> None:
    trainer = Trainer(load_config(config_path, overrides))
    counter, steps, evaluations = Gathers(), [], []
    train_step, evaluate = trainer_module.train_step, trainer._evaluate

    def counted_step(engine, method, micro_batches: list[dict], *others):
        before = counter.bytes
        result = train_step(engine, method, micro_batches, *others)
        images = sum(bool(batch["inputs"]) for batch in micro_batches)
        steps.append({"stage": trainer.at.stage, "bytes": counter.bytes - before, "images": images})
        return result

    def noted_evaluation(*args):
        evaluations.append(len(steps))
        return evaluate(*args)

    trainer_module.train_step, trainer._evaluate = counted_step, noted_evaluation
    trainer.run()
    parameters = trainer.engine.module.parameters()
    model_bytes = sum(parameter.ds_numel * parameter.element_size() for parameter in parameters)
    if dist.get_rank() == 0:
        out.write_text(json.dumps({"model_bytes": model_bytes, "steps": steps, "evaluated_after": evaluations}))
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    end_process(0)
