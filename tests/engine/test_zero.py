"""Training on 2 ranks under every ZeRO stage against plain AdamW in a single process over the same global batches.

Tolerance on losses, 2e-5 relative: fp32 sums taken in another order (measured 1e-6), which AdamW's normalisation
magnifies step by step. It is tight: forgetting to reset the optimizer, or resetting once too often, moves the
losses by more than 100 times as much, which is asserted too. In bf16, 3e-2: the reference stays in fp32, and bf16
holds 8 bits of a number.
"""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import coconut_loss
from zero_cases import CASES, PASSES, Case, batches, build_model, run_config

from multicoco.engine.optimizer import lr_factor

TOLERANCE = 2e-5
BF16_TOLERANCE = 3e-2
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> dict:
    """What every case did on two ranks under torchrun."""
    folder = tmp_path_factory.mktemp("zero")
    worker = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = [*worker, str(HERE / "zero_worker.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    return torch.load(folder / "results.pt", weights_only=True)


def single_process(case: Case, fresh_optimizer_at: int | None) -> tuple[list[float], dict]:
    """Recomputing forward passes, torch's own AdamW; at `fresh_optimizer_at` a brand-new one."""
    config, model = run_config(case), build_model(case)
    losses, optimizer, started = [], None, 0
    for step in range(case.steps):
        if step in (0, fresh_optimizer_at):
            trainable = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trainable, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
            started = step
        if step == case.poisoned:  # left out, by the schedule too
            losses.append(math.nan)
            started += 1
            continue
        factor = lr_factor(step - started, config.lr_schedule, config.warmup_steps, case.reset_after)
        optimizer.param_groups[0]["lr"] = config.lr * factor
        [batch] = batches(step, accumulation=1)
        loss = coconut_loss(model, **batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, copy.deepcopy(model.state_dict())


@pytest.mark.distributed
@pytest.mark.parametrize("name", CASES)
def test_losses_and_weights_equal_single_process_adamw(two_ranks, name):
    case = CASES[name]
    losses, weights = single_process(case, fresh_optimizer_at=case.reset_after)
    tolerance = BF16_TOLERANCE if case.bf16 else TOLERANCE
    assert two_ranks[name]["losses"] == pytest.approx(losses, rel=tolerance, nan_ok=True)
    assert two_ranks[name]["skipped"] == (case.poisoned is not None)
    once_or_recomputed = 1 + case.checkpointing
    assert two_ranks[name]["layer_calls"] == case.steps * case.accumulation * PASSES * once_or_recomputed
    gathered = two_ranks[name]["weights"]
    for key, weight in gathered.items():
        # an entry whose gradient is rounding noise may take AdamW's full step the other way: compare the bulk
        assert (weight - weights[key]).abs().mean() < tolerance, key
    assert all(key.startswith("lm_head.") for key in set(weights) - set(gathered))  # tied: it is the embedding


@pytest.mark.parametrize("name", ["zero2", "zero2_frozen"])
def test_the_comparison_would_notice_a_missing_or_extra_reset(name):
    case = CASES[name]
    losses, _ = single_process(case, fresh_optimizer_at=case.reset_after)
    for wrong in (None, case.reset_after + 1):
        others, _ = single_process(case, fresh_optimizer_at=wrong)
        difference = max(abs(a - b) / b for a, b in zip(others, losses, strict=True))
        assert difference > 100 * TOLERANCE


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_warms_up_then_follows_its_schedule(schedule):
    factors = [lr_factor(step, schedule, 4, 20) for step in range(21)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[20] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-12)
    assert factors[12] == pytest.approx(1.0 if schedule == "constant" else 0.5)
    assert factors[4:] == sorted(factors[4:], reverse=True)
