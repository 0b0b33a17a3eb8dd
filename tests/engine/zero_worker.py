"""Run by torchrun on several ranks: trains a small model under many engine settings and saves what rank 0 saw."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from reference import LATENT
from zero_cases import CASES, PASSES, Case, batches, build_model, run_config

from multicoco.engine.deepspeed import build_engine, device, init_distributed, model_shape, whole_state_dict
from multicoco.engine.ds_config import resolve_ds_config
from multicoco.engine.optimizer import reset_optimizer_state, start_schedule
from multicoco.latent.reasoner import LatentReasoner
from multicoco.process import end_process


def train(case: Case, rank: int, world_size: int, folder: Path) -> dict:
    config = run_config(case)
    path = folder / f"ds_config_{rank}.json"
    path.write_text(json.dumps({"zero_optimization": case.zero}))
    model = build_model(case).to(torch.bfloat16 if case.bf16 else torch.float32).eval()  # as from_pretrained leaves it
    reasoner = LatentReasoner(model, LATENT)
    ds_config = resolve_ds_config(path, config, world_size, model_shape(reasoner, passes=PASSES))
    engine = build_engine(reasoner, config, ds_config)
    start_schedule(engine, config, config.lr, total_steps=case.reset_after)
    losses, layer_calls = [], []
    reasoner.decoder.layers[0].input_layernorm.register_forward_hook(lambda *_: layer_calls.append(1))
    for step in range(case.steps):
        if step == case.reset_after:
            reset_optimizer_state(engine)
            start_schedule(engine, config, config.lr, total_steps=case.steps - step)
        share = torch.zeros(())
        micro_batches = batches(step, case.accumulation, rank, world_size)
        labelled = torch.tensor(sum(int((b["labels"][:, 1:] != -100).sum()) for b in micro_batches))
        dist.all_reduce(labelled)
        for batch in micro_batches:
            inputs = {key: value.to(device()) for key, value in batch.items()}
            divisor = labelled / (world_size * case.accumulation)
            if step == case.poisoned and rank == 1:
                divisor = divisor * torch.nan
            loss = engine(**inputs, n_passes=PASSES, loss_divisor=divisor).loss
            engine.backward(loss)
            engine.step()
            share += loss.detach() / (world_size * case.accumulation)
        dist.all_reduce(share)
        losses.append(float(share))
    weights = whole_state_dict(engine.module.model)
    skipped = engine.skipped_steps
    engine.destroy()
    return {"losses": losses, "weights": weights, "skipped": skipped, "layer_calls": len(layer_calls)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rank, world_size = init_distributed()
    results = {name: train(case, rank, world_size, folder) for name, case in CASES.items()}
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.barrier()
    end_process(0)
