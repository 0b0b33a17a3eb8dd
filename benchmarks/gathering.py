"""What ZeRO-3 gathers in a step with latent tokens, by how many parameters may live at once; on two ranks.

Every latent column walks through the whole language model: what may live decides whether it is gathered again for each.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from common import Gathers, parser
from measuring import Report

from multicoco.config import RunConfig
from multicoco.engine.deepspeed import build_engine, init_distributed, model_shape
from multicoco.engine.ds_config import resolve_ds_config
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import load_backbone
from multicoco.models.tiny import build_tiny_internvl
from multicoco.models.vocabulary import add_latent_tokens
from multicoco.process import end_process

STEPS = 4  # DeepSpeed records its trace in the first, and follows it from the second on


def gathered(folder: Path, side: dict, latents: int) -> dict:
    """One side, on this rank: bytes and calls that gather in a steady step."""
    backbone = load_backbone(str(folder / "model"))
    add_latent_tokens(backbone)
    config = RunConfig(
        mode="coconut_train",
        name="cost",
        model_id=str(folder / "model"),
        train_path="none.json",
        coconut={"enabled": True, "max_latent_stage": latents, "first_stage": 1},
        activation_checkpointing=side["checkpointing"],
    )
    reasoner = LatentReasoner(backbone.model, backbone.latent_tokens.latent)
    shape = model_shape(reasoner, latents + 1)
    live = {"all": shape.parameters, "decoder": shape.decoder_parameters, "half": shape.decoder_parameters // 2}
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": shape.decoder_parameters // 20,
        "stage3_max_live_parameters": live[side["live"]],
        "stage3_max_reuse_distance": "auto",
    }
    path = folder / f"ds_config_{dist.get_rank()}.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    engine = build_engine(reasoner, config, resolve_ds_config(path, config, dist.get_world_size(), shape))
    ids = torch.full((2, 40 + latents), 100)
    ids[:, 20 : 20 + latents] = backbone.latent_tokens.latent
    ids[:, :9] = backbone.model.config.image_token_id
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 20 + latents, -100)
    pixels = torch.zeros(2, 3, *backbone.model.config.vision_config.image_size)
    gathers = Gathers()
    for _ in range(STEPS):
        bytes_before, calls_before = gathers.bytes, gathers.calls
        output = engine(ids, torch.ones_like(ids), labels, pixel_values=pixels, n_passes=latents + 1)
        engine.backward(output.loss)
        engine.step()
    return {
        "gathered_of_model": (gathers.bytes - bytes_before) / (4 * shape.parameters),
        "gathers": gathers.calls - calls_before,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--latents", type=int, default=6)
    options.add_argument("--side", type=json.loads, help="run this side as one rank of torchrun")
    args = options.parse_args()
    settings = {"hidden_size": 256, "text_layers": 12, **args.geometry}
    if args.side is not None:
        rank, _ = init_distributed()
        measured = gathered(args.out, args.side, args.latents)
        if rank == 0:
            print(json.dumps(measured))
        dist.barrier()
        return
    torch.set_num_threads(args.threads)
    report = Report("gathering", settings | {"latents": args.latents}, args.out)
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_internvl(["start at red"], Path(folder) / "model", **settings)
        for checkpointing in (False, True):
            for live in ("all", "decoder", "half"):
                side = {"checkpointing": checkpointing, "live": live}
                command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
                mine = ["--side", json.dumps(side), "--out", folder]
                done = subprocess.run(
                    [*command, __file__, *mine, "--latents", str(args.latents)],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
                report.add(side | json.loads(done.stdout.splitlines()[-1]))
    most = max(row["gathered_of_model"] for row in report.rows if row["live"] == "all")
    report.goal("gathered in a step, of the model's bytes, where all may live", "<= 1.05", most, most <= 1.05)
    report.finish()


if __name__ == "__main__":
    main()
    end_process(0)
