"""What a checkpoint costs: the time that training stands still for it, and to go on from it, against DeepSpeed's alone.

MultiCoCo also writes the weights for `from_pretrained`, flushes every file to disk, hashes it, and checks the hashes
before it goes on; asynchronously, all but a copy of the state in memory is done beside the training.
"""

import json
import shutil
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from common import parser
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from measuring import Report

from multicoco.config import RunConfig
from multicoco.engine.checkpoint import Checkpoints, TrainerState
from multicoco.engine.deepspeed import build_engine, init_distributed, model_shape
from multicoco.engine.ds_config import resolve_ds_config
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import Backbone, load_backbone
from multicoco.models.tiny import build_tiny_internvl
from multicoco.process import end_process


def build(folder: Path, settings: dict) -> tuple[DeepSpeedEngine, Backbone, RunConfig]:
    """An engine with optimizer state, and its model."""
    source = build_tiny_internvl(["start at red"], folder / "model", **settings)
    backbone = load_backbone(str(source))
    config = RunConfig(mode="vanilla_train", name="cost", model_id=str(source), train_path="none.json")
    path = folder / "ds_config.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    reasoner = LatentReasoner(backbone.model, latent_token_id=-1)
    ds_config = resolve_ds_config(path, config, 1, model_shape(reasoner, passes=1))
    engine = build_engine(reasoner, config, ds_config)
    ids = torch.arange(1, 65)[None]
    engine.backward(engine(ids, torch.ones_like(ids), labels=ids).loss)
    engine.step()
    return engine, backbone, config


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--epoch-seconds", type=float, default=3600, help="length of the epoch that a save is a share of"
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    init_distributed()
    settings = {"hidden_size": 768, "text_layers": 8, **args.geometry}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # a disk, where /tmp may be memory
        folder = Path(folder)
        engine, backbone, config = build(folder, settings)
        state, steps = TrainerState(epoch=1, stage=0, step=0, epoch_step=1, world_size=1, zero_stage=2), count(1)
        (folder / "run").mkdir()
        waiting, beside = (Checkpoints(folder / "run", 1, 0, asynchronous) for asynchronous in (False, True))

        def plain_save() -> None:
            shutil.rmtree(folder / "plain", ignore_errors=True)
            engine.checkpoint_engine = TorchCheckpointEngine()
            engine.save_checkpoint(str(folder / "plain"), tag="state")

        def own_save(checkpoints: Checkpoints) -> None:
            now = replace(state, step=next(steps))  # a step that has its checkpoint would not write another
            checkpoints.save(engine, backbone, now, config.to_yaml())

        def save_and_wait(checkpoints: Checkpoints) -> None:
            own_save(checkpoints)
            checkpoints.finish()

        def plain_load() -> None:
            engine.checkpoint_engine = TorchCheckpointEngine()
            engine.load_checkpoint(str(folder / "plain"), tag="state")

        report = Report("checkpointing", settings, args.out)
        saves = report.in_turn(
            {
                "deepspeed alone": plain_save,
                "multicoco": lambda: save_and_wait(waiting),
                "multicoco, asynchronous": lambda: own_save(beside),
            },
            args.repeats,
            between=beside.finish,
        )
        written = report.in_turn({"multicoco, asynchronous": lambda: save_and_wait(beside)}, args.repeats)
        loads = report.in_turn(
            {
                "deepspeed alone": plain_load,
                "multicoco": lambda: waiting.load(engine, waiting.newest_whole(), state),
            },
            args.repeats,
        )
        for name, folder_of in zip(saves, [folder / "plain", waiting.root, beside.root], strict=True):
            report.add(
                {
                    "way": name,
                    "blocked_s": saves[name].median,
                    "written_s": written.get(name, saves[name]).median,
                    "load_s": loads.get(name, loads["multicoco"]).median,
                    "mib": sum(p.stat().st_size for p in folder_of.rglob("*") if p.is_file()) / 2**20,
                    **saves[name].over(saves["deepspeed alone"], "blocked_ratio"),
                    "share_of_epoch": saves[name].median / args.epoch_seconds,
                }
            )
    share = report.rows[-1]["share_of_epoch"]
    report.goal(f"share of an epoch of {args.epoch_seconds:.0f} s", "<= 0.01", share, share <= 0.01)
    report.finish()


if __name__ == "__main__":
    main()
    end_process(0)
