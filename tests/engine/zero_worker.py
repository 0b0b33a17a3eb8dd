"""On several ranks: trains a small model under many engine settings, and rank 0 saves what it saw."""

import gc
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from reference import LATENT
from zero_cases import CASES, PASSES, Case, batches, build_model, precision, run_config, seeds

from multicoco.engine.deepspeed import build_engine, device, init_distributed, model_shape, whole_state_dict
from multicoco.engine.ds_config import resolve_ds_config
from multicoco.engine.optimizer import reset_optimizer_state, start_schedule, wrapped_optimizer
from multicoco.engine.rates import learning_rates
from multicoco.latent.controls import GaussianThoughts, another_rows
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.schedule import SEQUENTIAL, Jacobi
from multicoco.latent.thoughts import hidden_state
from multicoco.process import end_process


def bytes_held() -> int:
    """Of all tensors that have been made since the start of the case, and live in this process."""
    gc.collect()
    # deepspeed.comm makes objects that raise when they are asked for their class
    storages = [x.untyped_storage() for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def train(case: Case, rank: int, world_size: int, folder: Path) -> dict:
    gc.collect()
    gc.freeze()  # what is there already is looked through no more
    config = run_config(case)
    path = folder / f"ds_config_{rank}.json"
    path.write_text(json.dumps({"zero_optimization": case.zero, "fp16": case.fp16 or {}, **case.other}))
    model = build_model(case).to(precision(case)).eval()  # as from_pretrained leaves it
    if case.thoughts == "noise":
        noise = GaussianThoughts(LATENT, PASSES - 1, model.get_decoder())
        reasoner = LatentReasoner(model, None, fixed_thoughts=noise)
    else:
        source = another_rows if case.thoughts == "borrowed" else hidden_state
        schedule = Jacobi(PASSES - 1) if case.thoughts == "parallel" else SEQUENTIAL
        reasoner = LatentReasoner(model, LATENT, thoughts=source, pass_schedule=schedule)
    ds_config = resolve_ds_config(path, config, world_size, model_shape(reasoner, passes=PASSES))
    engine = build_engine(reasoner, config, ds_config)
    assert not wrapped_optimizer(engine.optimizer).state, "AdamW has taken a step before the first"
    start_schedule(engine, config, config.lr, total_steps=case.reset_after)

    def losses_of(step: int, loss_of: Callable[..., torch.Tensor]) -> Iterator[torch.Tensor]:
        """Of this rank's micro-batches, one after the other."""
        micro_batches = batches(case, step, rank, world_size)
        labelled = torch.tensor(sum(int((b["labels"][:, 1:] != -100).sum()) for b in micro_batches))
        dist.all_reduce(labelled)
        for batch in micro_batches:
            inputs = {key: value.to(device()) for key, value in batch.items()}
            divisor = labelled / (world_size * case.accumulation)
            if step == case.poisoned and rank == 1:
                divisor = divisor * torch.nan
            yield loss_of(inputs, divisor, n_passes=PASSES, seeds=seeds(step, batch))

    def mean(losses: list[torch.Tensor]) -> float:
        share = torch.stack(losses).sum().detach() / (world_size * case.accumulation)
        dist.all_reduce(share)
        return float(share)

    def trained(inputs: dict, divisor: torch.Tensor, **how) -> torch.Tensor:
        return engine(**inputs, loss_divisor=divisor, **how).loss

    def evaluated(inputs: dict, divisor: torch.Tensor, **how) -> torch.Tensor:
        """Past the engine and the reasoner's own forward, in which DeepSpeed gathers whatever is missing."""
        labels = inputs.pop("labels")
        return reasoner.language_loss(reasoner.run_passes(**inputs, **how).hidden, labels, divisor)

    before = None
    if case.family != "internvl":
        with torch.no_grad():
            before = mean(list(losses_of(0, evaluated)))
    losses, loss_scales, layer_calls, held = [], [], [], []
    reasoner.decoder.layers[0].input_layernorm.register_forward_hook(lambda *_: layer_calls.append(1))
    for step in range(case.steps):
        if step == case.reset_after:
            held.append(bytes_held())
            reset_optimizer_state(engine)
            start_schedule(engine, config, config.lr, total_steps=case.steps - step)
        of_step = []
        for loss in losses_of(step, trained):
            engine.backward(loss)
            engine.step()
            of_step.append(loss.detach())
        losses.append(mean(of_step))
        loss_scales += [engine.optimizer.loss_scale] if case.fp16 else []
    held.append(bytes_held())
    rates = [learning_rates(engine, config.lr)]
    if case.rates:  # a checkpoint keeps them
        start_schedule(engine, config, config.lr, total_steps=9)
        rates.append(learning_rates(engine, config.lr))
        engine.save_checkpoint(str(folder / "state"), tag="state")
        start_schedule(engine, config, dict.fromkeys(case.rates, 1.0), total_steps=1)
        engine.load_checkpoint(str(folder / "state"), tag="state")
        rates.append(learning_rates(engine, config.lr))
    weights = whole_state_dict(engine.module.model)
    counted = {
        "rates": rates,
        "evaluated": before,
        "skipped": engine.skipped_steps,
        "steps": engine.global_steps,
        "adam_steps": {int(state["step"]) for state in wrapped_optimizer(engine.optimizer).state.values()},
        "layer_calls": len(layer_calls),
        "bytes_held": held,
    }
    engine.destroy()
    return {"losses": losses, "weights": weights, "loss_scales": loss_scales, **counted}


def main(folder: Path) -> None:
    """Trains under all settings, and ends the process."""
    rank, world_size = init_distributed()
    get_accelerator().is_fp16_supported = lambda: True  # DeepSpeed asks oneDNN; PyTorch's own kernels can
    warnings.simplefilter("ignore", FutureWarning)  # of PyTorch to DeepSpeed, at every collective
    results = {name: train(case, rank, world_size, folder) for name, case in CASES.items()}
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.barrier()
    end_process(0)
