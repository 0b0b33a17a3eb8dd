"""AdamW, the learning-rate schedule, and their restart at a stage transition."""

import math
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch.optim.lr_scheduler import LambdaLR

from multicoco.config import RunConfig
from multicoco.config.rates import Rates
from multicoco.engine.rates import Groups, peak_rate


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that leaves a step out when the gradient is not finite, as DeepSpeed's own optimizers do.

    Attributes:
        overflow: whether the last step was left out; DeepSpeed reads it.
    """

    overflow = False

    # no closure: its gradients would come after the look at them
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.overflow = not torch.nn.utils.get_total_norm(gradients).isfinite().item()
        if not self.overflow:
            super().step(closure)


def build_optimizer(groups: Groups, config: RunConfig, offloaded: bool, sharded: bool) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); DeepSpeed's CPU build of it where the optimizer state is offloaded.

    Its learning rate is 0 until `start_schedule`.

    Args:
        sharded: ZeRO's optimizer will wrap it, and see to gradients that are not finite.
    """
    options: dict[str, Any] = {"lr": 0.0, "betas": config.betas, "weight_decay": config.weight_decay}
    if offloaded:
        on_cpu: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
        return on_cpu
    if sharded or config.bf16 or config.fp16:
        return torch.optim.AdamW(groups, **options)
    return GuardedAdamW(groups, **options)


def lr_factor(step: int, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """The factor on the peak learning rate at a step, from 0: linear warm-up, then constant, linear or cosine."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def wrapped_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The AdamW inside DeepSpeed's ZeRO or mixed-precision optimizer, or the plain one itself."""
    wrapped: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return wrapped


def start_schedule(engine: DeepSpeedEngine, config: RunConfig, rates: Rates, total_steps: int) -> None:
    """Starts the learning-rate schedule with these peaks, from its first step, over the next total_steps steps."""
    optimizer = wrapped_optimizer(engine.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = peak_rate(group, rates)
    engine.lr_scheduler = LambdaLR(
        optimizer, lambda step: lr_factor(step, config.lr_schedule, config.warmup_steps, total_steps)
    )


def reset_optimizer_state(engine: DeepSpeedEngine) -> None:
    """Forgets AdamW's moments and step counts: the next step is that of a new AdamW on the current weights.

    The fp32 master weights, the loss scale and DeepSpeed's own step counters stay.
    """
    wrapped_optimizer(engine.optimizer).state.clear()
    if getattr(engine.optimizer, "_hp_optimizer_states_linked", False):
        # ZeRO-1 and 2, and bf16 without ZeRO, would hold the old moments' memory by every parameter's link into them
        for parameter in engine.module.parameters():
            if (link := getattr(parameter, "_hp_mapping", None)) and link.optim_fragment:
                link.optim_fragment.clear()
        engine.optimizer._hp_optimizer_states_linked = False  # so that the next step links the new ones
