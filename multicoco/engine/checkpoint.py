"""Checkpoints of a run: written whole, found again, pruned.

<run folder>/checkpoints/epoch_0003/
    model/          weights (safetensors), tokenizer and image processor, for `from_pretrained`
    deepspeed/      DeepSpeed's sharded state, for resuming
    trainer.json    epoch, stage, step, accuracy
<run folder>/checkpoints/latest    the name of the newest one
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from multicoco.engine.deepspeed import whole_state_dict
from multicoco.errors import UserError
from multicoco.models.backbone import Backbone
from multicoco.tracking import write_json, write_text

_DEEPSPEED_TAG = "state"


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands at the end of an epoch. accuracy: of the evaluation after it, None without one."""

    epoch: int
    stage: int
    step: int
    accuracy: float | None


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        keep: how many of the newest stay; the best `keep_best` by accuracy stay besides.
    """

    def __init__(self, run_dir: Path, keep: int, keep_best: int):
        self.root = run_dir / "checkpoints"
        self.keep = keep
        self.keep_best = keep_best

    def save(self, engine: DeepSpeedEngine, backbone: Backbone, state: TrainerState) -> None:
        """Writes a checkpoint beside the others, names it when it is whole, then prunes. All ranks call it."""
        path = self.root / f"epoch_{state.epoch:04d}"
        unfinished = path.with_suffix(".unfinished")
        rank = dist.get_rank()
        if rank == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        dist.barrier()
        engine.save_checkpoint(str(unfinished / "deepspeed"), tag=_DEEPSPEED_TAG)
        weights = whole_state_dict(backbone.model)
        if rank == 0:
            backbone.save_pretrained(unfinished / "model", weights)
            write_json(unfinished / "trainer.json", asdict(state))
            shutil.rmtree(path, ignore_errors=True)
            unfinished.rename(path)
            write_text(self.root / "latest", path.name)
            self.prune()
        dist.barrier()

    def load(self, engine: DeepSpeedEngine) -> None:
        """Puts the latest checkpoint into the engine, its learning-rate schedule included. All ranks call it.

        Raises:
            UserError: there is none, or DeepSpeed cannot load it.
        """
        path = latest(self.root)
        try:
            loaded, _ = engine.load_checkpoint(str(path / "deepspeed"), tag=_DEEPSPEED_TAG)
        except Exception as error:
            raise UserError(f"checkpoint {path} does not fit this run: {error}") from error
        if loaded is None:
            raise UserError(f"checkpoint {path} holds no DeepSpeed state; start from its weights with load_model_path")

    def latest_state(self) -> TrainerState:
        """Raises UserError when the run has no checkpoint."""
        return read_state(latest(self.root))

    def best_accuracy(self) -> float | None:
        return max((a for p in all_checkpoints(self.root) if (a := read_state(p).accuracy) is not None), default=None)

    def prune(self) -> None:
        """Removes all but the newest `keep` and the best `keep_best`."""
        states = {path: read_state(path) for path in all_checkpoints(self.root)}
        newest = sorted(states, key=lambda path: states[path].epoch, reverse=True)
        evaluated = [path for path in states if states[path].accuracy is not None]
        best = sorted(evaluated, key=lambda path: rank_key(states[path]), reverse=True)
        kept = {*newest[: self.keep], *best[: self.keep_best]}
        for path in states.keys() - kept:
            shutil.rmtree(path)


def all_checkpoints(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("epoch_*/trainer.json") if not path.parent.suffix)


def read_state(path: Path) -> TrainerState:
    return TrainerState(**json.loads((path / "trainer.json").read_text()))


def rank_key(state: TrainerState) -> tuple[float, int]:
    """Sorts checkpoints by accuracy, of equals the later one last."""
    return (state.accuracy, state.epoch)


def latest(root: Path) -> Path:
    """Raises UserError when the run has no checkpoint."""
    marker = root / "latest"
    if not marker.exists():
        raise UserError(f"no checkpoint in {root}: set resume: false to start from the beginning")
    return root / marker.read_text().strip()


def find_weights(load_model_path: str) -> tuple[str, str]:
    """What to load for `load_model_path`, and how it was chosen, for the log.

    A run folder gives its best checkpoint by accuracy, or the latest where none was evaluated; a checkpoint folder its
    weights; anything else is left to transformers (a Hugging Face directory or a hub id).
    """
    path = Path(load_model_path)
    if (path / "trainer.json").exists():
        return str(path / "model"), f"checkpoint {path}"
    checkpoints = all_checkpoints(path / "checkpoints")
    if not checkpoints:
        return load_model_path, load_model_path
    best = max(
        (p for p in checkpoints if read_state(p).accuracy is not None),
        key=lambda p: rank_key(read_state(p)),
        default=None,
    )
    chosen, why = (best, "best") if best else (latest(path / "checkpoints"), "latest")
    return str(chosen / "model"), f"{why} checkpoint of {path}: {chosen.name}"
