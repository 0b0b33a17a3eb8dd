"""Checkpoints of a run: written beside the training, whole or not at all, checked, found again, pruned.

<run folder>/checkpoints/epoch_0003/                 the state after three epochs
<run folder>/checkpoints/epoch_0003_step_00000120/   within the fourth, after 120 optimizer steps in all
    model/          weights (safetensors), tokenizer and image processor, for `from_pretrained`; what is trained of the
                    thoughts beside it (`engine.thought_weights`)
    adapter/        of a run with LoRA: what it has trained, in peft's form, for `PeftModel.from_pretrained`
    deepspeed/      DeepSpeed's sharded state, for resuming
    random/         the state of every rank's random number generators
    trainer.json    where the run stands (`TrainerState`)
    config.yaml     the run's config
    manifest.json   size and hash of all of these; written last
    evaluation.json the accuracy, once it is known
<run folder>/checkpoints/latest    the name of the newest one
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from deepspeed import DeepSpeedEngine
from safetensors import SafetensorError

from multicoco.engine.deepspeed import thought_state_dict, whole_state_dict
from multicoco.engine.manifest import damage, describe, flush, seal
from multicoco.engine.optimizer import wrapped_optimizer
from multicoco.engine.random_state import random_state, set_random_state
from multicoco.engine.ranks import agree, gather, rank, world_size
from multicoco.engine.state_files import StateFiles
from multicoco.engine.thought_weights import save_thoughts
from multicoco.engine.trainer_state import EVALUATION, TrainerState, age_key, all_checkpoints, rank_key, read_state
from multicoco.engine.universal import TAG, plain_data_only, to_universal
from multicoco.errors import UserError
from multicoco.files import write_json, write_text
from multicoco.models.backbone import Backbone

T = TypeVar("T")


@dataclass(frozen=True)
class _Pending:
    """A checkpoint on its way to disk.

    Attributes:
        path: where it will be; until it is whole, it is `unfinished`.
        written: this rank's files of it, described for the manifest, once they are on disk.
        awaits_evaluation: what it is worth is not known yet, so nothing is pruned in its favour.
    """

    path: Path
    unfinished: Path
    written: Future[dict[str, dict[str, Any]]]
    awaits_evaluation: bool


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        keep: how many of the newest stay; the best `keep_best` (`rank_key`), and always the very best, stay besides.
        keep_stage_before: the best of the stage before the newest one's stays too.
        asynchronous: checkpoints are written from a copy of the state in the CPU's memory, so that training can go on
            before `finish`; otherwise it must come first.
    """

    def __init__(
        self, run_dir: Path, keep: int, keep_best: int, asynchronous: bool = False, keep_stage_before: bool = False
    ):
        self.run_dir = run_dir
        self.root = run_dir / "checkpoints"
        self.keep = keep
        self.keep_best = keep_best
        self.asynchronous = asynchronous
        self.keep_stage_before = keep_stage_before
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None

    def save(
        self,
        engine: DeepSpeedEngine,
        backbone: Backbone,
        state: TrainerState,
        config: str,
        awaits_evaluation: bool = False,
    ) -> None:
        """Starts to write a checkpoint beside the others; `finish` makes it one of them, and prunes unless the
        checkpoint awaits an evaluation: then `note_evaluation` does. All ranks call it.

        The one before must be finished. One of this step that is there already, because the run was stopped a second
        time before the next, stays.

        Raises:
            UserError: it could not be written; on all ranks. Nothing of it is left, the earlier ones are as before.
        """
        path = self.root / state.name
        if agree(path.exists, only_rank_0=True):
            return
        unfinished = path.with_name(f"{path.name}.unfinished")
        agree(lambda: _or_user_error(path, lambda: self._prepare(unfinished)), only_rank_0=True)
        write = self._collect(engine, backbone, state, config, unfinished)
        self._pending = _Pending(path, unfinished, self._writer.submit(write), awaits_evaluation)

    def _prepare(self, unfinished: Path) -> None:
        self.remove_leftovers()
        if not self.run_dir.is_dir():
            raise OSError(f"the run folder {self.run_dir} is gone")
        unfinished.mkdir(parents=True)

    def _collect(
        self, engine: DeepSpeedEngine, backbone: Backbone, state: TrainerState, config: str, folder: Path
    ) -> Callable[[], dict[str, dict[str, Any]]]:
        """Everything that this rank has to write; what is returned writes and describes it."""
        files = engine.checkpoint_engine = StateFiles(copying=self.asynchronous)
        engine._copy_recovery_script = lambda folder: None  # the weights are written for `from_pretrained`
        engine.save_checkpoint(str(folder / "deepspeed"), tag=TAG, save_latest=False)
        contents = files.contents | {folder / "random" / f"rank_{rank()}.pt": random_state()}
        weights, thoughts = whole_state_dict(backbone.model), thought_state_dict(engine.module)

        def write() -> dict[str, dict[str, Any]]:
            for path, content in contents.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(content, path)
            written = list(contents)
            if weights is not None:
                backbone.save_pretrained(folder / "model", weights)
                save_thoughts(folder / "model", thoughts)
                backbone.save_adapters(folder / "adapter", weights)
                write_json(folder / "trainer.json", asdict(state))
                write_text(folder / "config.yaml", config)
                written += [*folder.glob("model/*"), *folder.glob("adapter/*")]
                written += [folder / "trainer.json", folder / "config.yaml"]
            return describe(folder, written)

        return write

    @property
    def is_writing(self) -> bool:
        """Whether this rank's part of a checkpoint is still on its way to disk."""
        return self._pending is not None and not self._pending.written.done()

    @property
    def is_unfinished(self) -> bool:
        return self._pending is not None

    def finish(self) -> None:
        """Waits until the checkpoint that is being written, if there is one, is whole and on disk, and names it. All
        ranks call it.

        Raises:
            UserError: as in `save`.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            described = agree(lambda: _or_user_error(pending.path, pending.written.result))
            every = {name: entry for part in gather(described) for name, entry in part.items()}
            agree(lambda: _or_user_error(pending.path, lambda: self._publish(pending, every)), only_rank_0=True)
        except UserError:
            if rank() == 0:
                shutil.rmtree(pending.unfinished, ignore_errors=True)
            raise

    def _publish(self, pending: _Pending, described: dict[str, dict[str, Any]]) -> None:
        seal(pending.unfinished, described)
        pending.unfinished.rename(pending.path)
        flush(self.root)
        self._name_newest()
        if not pending.awaits_evaluation:
            self.prune()

    def note_evaluation(self, name: str, accuracy: float | None, best_accuracy: float | None, keep: bool) -> None:
        """Adds an evaluation to a finished checkpoint, or takes the checkpoint away, then prunes. All ranks call it.

        Raises:
            UserError: it could not be written; on all ranks.
        """
        path = self.root / name
        agree(lambda: _or_user_error(path, lambda: self._note(path, accuracy, best_accuracy, keep)), only_rank_0=True)

    def _note(self, path: Path, accuracy: float | None, best_accuracy: float | None, keep: bool) -> None:
        if not path.exists():  # it could not be written, and training went on
            return
        if keep:
            noted = {"accuracy": accuracy, "best_accuracy": best_accuracy, "evaluated": True}
            write_json(path / EVALUATION, noted)
        else:
            path.rename(path.with_name(f"{path.name}.removed"))
            self._name_newest()
        self.prune()

    def _name_newest(self) -> None:
        newest = max(all_checkpoints(self.root), key=age_key, default=None)
        if newest is None:
            (self.root / "latest").unlink(missing_ok=True)
        else:
            write_text(self.root / "latest", newest.name)

    def load(self, engine: DeepSpeedEngine, path: Path, state: TrainerState) -> None:
        """Puts a checkpoint into the engine, its learning-rate schedule and random states included. All ranks call it.

        For another number of ranks or ZeRO stage it goes by way of DeepSpeed's universal checkpoint.

        Raises:
            UserError: DeepSpeed cannot load it, or not into this ZeRO stage.
        """
        engine.checkpoint_engine = StateFiles()
        stage = engine.zero_optimization_stage()
        fits = state.zero_stage == stage and (stage == 0 or state.world_size == world_size())
        if not fits and 0 in (state.zero_stage, stage):
            raise UserError(
                f"checkpoint {path} is of ZeRO stage {state.zero_stage}, this run of stage {stage}: DeepSpeed converts "
                "between 1, 2 and 3 only; go on with the same stage, or start a new run from its weights with "
                "load_model_path"
            )
        if not fits and len(wrapped_optimizer(engine.optimizer).param_groups) > 1:
            raise UserError(
                f"checkpoint {path} is of {state.world_size} ranks and ZeRO stage {state.zero_stage}: with a learning "
                "rate for each part (lr) a run goes on with these alone, DeepSpeed's conversion mixes the rates up"
            )
        try:
            if fits:
                loaded, _ = engine.load_checkpoint(str(path / "deepspeed"), tag=TAG)
            else:
                loaded = self._load_universal(engine, path)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"checkpoint {path} does not fit this run: {error!r}") from error
        if loaded is None:
            raise UserError(f"checkpoint {path} holds no DeepSpeed state; start from its weights with load_model_path")
        own = path / "random" / f"rank_{rank()}.pt"
        if own.exists():  # a rank that was not there then keeps its seed
            set_random_state(torch.load(own, weights_only=True))

    def _load_universal(self, engine: DeepSpeedEngine, path: Path) -> str | None:
        loaded: str | None
        converted = self.root / f"{path.name}.removed"  # a leftover, should this process be killed
        with plain_data_only():
            agree(lambda: to_universal(path / "deepspeed" / TAG, converted), only_rank_0=True)
            engine._config.load_universal_checkpoint = True
            try:
                loaded, _ = engine.load_checkpoint(str(converted), tag=TAG)
            finally:
                engine._config.load_universal_checkpoint = False
        agree(lambda: shutil.rmtree(converted), only_rank_0=True)
        return loaded

    def newest_whole(self) -> Path | None:
        """The newest checkpoint without damage, None if there is no checkpoint at all. Collective.

        Damaged ones are named, and put aside as <name>.damaged.

        Raises:
            UserError: all of them are damaged.
        """
        paths = agree(lambda: sorted(all_checkpoints(self.root), key=age_key, reverse=True), only_rank_0=True)
        for path in paths:
            problems = damage(path)
            if not problems:
                return path
            agree(partial(_put_aside, path, problems), only_rank_0=True)
        if paths:
            raise UserError(f"every checkpoint in {self.root} is damaged: start again under another name")
        return None

    def prune(self) -> None:
        """Removes all but the newest `keep`, the best `keep_best` and what `keep_stage_before` says; a crash in between
        leaves whole checkpoints."""
        states = {path: read_state(path) for path in all_checkpoints(self.root)}
        newest = sorted(states, key=age_key, reverse=True)
        evaluated = [path for path in states if states[path].accuracy is not None]
        best = sorted(evaluated, key=lambda path: rank_key(states[path]), reverse=True)
        kept = {*newest[: self.keep], *best[: max(1, self.keep_best)]}
        if self.keep_stage_before:
            kept.update([path for path in best if states[path].stage < states[newest[0]].stage][:1])
        for path in states.keys() - kept:
            path.rename(path.with_name(f"{path.name}.removed"))
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """What a crash in the middle of saving or pruning has left: folders, and files that were being written."""
        for pattern in ("*.unfinished", "*.removed", "*/.*.unfinished"):
            for path in self.root.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _put_aside(path: Path, problems: list[str]) -> None:
    print(f"checkpoint {path} is damaged and put aside: {'; '.join(problems)}", flush=True)
    try:
        path.rename(path.with_name(f"{path.name}.damaged"))
    except OSError as error:
        raise UserError(f"checkpoint {path} is damaged and cannot be renamed ({error}): move it away") from error


def _or_user_error(path: Path, write: Callable[[], T]) -> T:
    try:
        return write()
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save has the second for a full disk
        raise UserError(
            f"checkpoint {path.name} could not be written to {path.parent} (rank {rank()}: {error}); the ones before "
            "it are untouched"
        ) from error
