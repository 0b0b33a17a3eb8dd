"""For the ranks of a run: counts the bytes that ZeRO-3 gathers in each step of training, and saves them."""

import json
from pathlib import Path

import torch.distributed as dist
from common import Gathers

from multicoco import training
from multicoco.training import trainer as trainer_module


def count_into(out: Path) -> None:
    """Makes the run of this process write what it has counted, on rank 0."""
    counters, built, steps, evaluations = [], [], [], []
    train_step, build_run = trainer_module.train_step, training.build_run

    def counted_step(engine, method, micro_batches: list[dict], *others):
        [counter] = counters
        before = counter.bytes
        result = train_step(engine, method, micro_batches, *others)
        images = sum(bool(batch["inputs"]) for batch in micro_batches)
        steps.append({"stage": built[0].at.stage, "bytes": counter.bytes - before, "images": images})
        return result

    def build(*arguments):
        trainer = build_run(*arguments)
        built.append(trainer)
        counters.append(Gathers())  # of the ranks that have met
        evaluate, run = trainer._evaluate, trainer.run

        def noted_evaluation(*args):
            evaluations.append(len(steps))
            return evaluate(*args)

        def run_and_save():
            run()
            parameters = trainer.engine.module.parameters()
            model_bytes = sum(parameter.ds_numel * parameter.element_size() for parameter in parameters)
            if dist.get_rank() == 0:
                out.write_text(json.dumps({"model_bytes": model_bytes, "steps": steps, "evaluated_after": evaluations}))

        trainer._evaluate, trainer.run = noted_evaluation, run_and_save
        return trainer

    trainer_module.train_step, training.build_run = counted_step, build
