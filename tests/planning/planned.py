"""What the planner's tests plan for: a tiny model, a batch, an engine, and a run."""

from typing import Any

import torch
from reference import internvl

from multicoco.config import RunConfig
from multicoco.engine.assembly import model_dtype
from multicoco.planning.candidates import Candidate, candidates
from multicoco.planning.cost import Cluster
from multicoco.planning.geometry import ModelGeometry, Workload, geometry_of
from multicoco.planning.setting import Setting

NOTHING = dict.fromkeys(("vision_tower", "projector", "language_model"), False)
WORK = Workload(tiles=1, prompt=20, latents=3, written=8)
PLAIN = Setting(
    stage=0,
    offload="none",
    checkpointing=False,
    micro_batch=2,
    accumulation=1,
    ranks=1,
    reduce_bucket=1000,
    max_live=10**9,
)


def model(dtype: torch.dtype = torch.float32, **freezing: bool) -> ModelGeometry:
    return geometry_of(internvl().config, dtype, NOTHING | freezing)


def run(**keys: Any) -> RunConfig:
    """Of a global batch of 12 a rank."""
    about = {"name": "run", "model_id": "none", "train_path": "none.json", "mode": "coconut_train", "num_epochs": 3}
    batch = {"batch_size": 4, "gradient_accumulation_steps": 3}
    return RunConfig(**about | batch | {"coconut": {"enabled": True, "max_latent_stage": 2}} | keys)


def planned_model(config: RunConfig) -> ModelGeometry:
    return geometry_of(internvl().config, model_dtype(config), config.freeze.model_dump(), lora=config.lora)


def found_for(config: RunConfig, cluster: Cluster) -> list[Candidate]:
    work = Workload(tiles=1, prompt=30, latents=2, written=8)
    return candidates(config, planned_model(config), [work], cluster)
