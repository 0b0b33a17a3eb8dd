"""The disk space of a run's checkpoints, before there is one."""

from dataclasses import dataclass

import torch
from transformers import AutoConfig

from multicoco.config import RunConfig
from multicoco.models.families import family_of
from multicoco.models.freezing import freeze


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters."""

    parameters: int
    trainable: int


def model_size(config: RunConfig) -> ModelSize | None:
    """Counted on the meta device, from the config.json alone; None where it is not on this machine.

    Raises:
        UserError: the model is of no family, or has not the parts that `freeze` names.
    """
    options = {"trust_remote_code": config.trust_remote_code}
    try:
        model_config = AutoConfig.from_pretrained(config.model_id, local_files_only=True, **options)
    except (OSError, ValueError):
        return None
    auto_model = family_of(model_config).auto_model
    with torch.device("meta"):
        model = auto_model.from_config(model_config, **options)
    freeze(model, **config.freeze.model_dump())
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ModelSize(sum(n for n, _ in counts), sum(n for n, trained in counts if trained))


def checkpoint_bytes(size: ModelSize, zero_stage: int, mixed_precision: bool) -> int:
    """One checkpoint: weights for `from_pretrained`, DeepSpeed's copy of them, fp32 master weights and AdamW's moments.

    ZeRO-3 keeps no copy beside the master weights, and plain fp32 training without ZeRO no master weights.
    """
    weights = size.parameters * (2 if mixed_precision else 4)
    copies = 1 if zero_stage == 3 else 2
    fp32_states = 2 if zero_stage == 0 and not mixed_precision else 3
    return copies * weights + fp32_states * 4 * size.trainable


def most_checkpoints(config: RunConfig) -> int:
    """That stand on the disk at a time: those that stay, and the one that is being written before an old one goes."""
    if config.mode == "eval_only":
        return 0
    staying = config.max_checkpoints_to_keep + max(1, config.keep_best_checkpoints)
    return staying + 1 if config.save_every_steps else min(staying + 1, config.num_epochs)
