"""Checkpoints of a run: written beside the training, whole or not at all, checked, found again, pruned.

<run folder>/checkpoints/epoch_0003/                 the state after three epochs
<run folder>/checkpoints/epoch_0003_step_00000120/   within the fourth, after 120 optimizer steps in all
    model/          weights (safetensors), tokenizer and image processor, for `from_pretrained`
    deepspeed/      DeepSpeed's sharded state, for resuming
    random/         the state of every rank's random number generators
    trainer.json    where the run stands (`TrainerState`)
    config.yaml     the run's config
    manifest.json   size and hash of all of these; written last
<run folder>/checkpoints/latest    the name of the newest one
"""

import io
import json
import os
import random
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import numpy as np
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.checkpoint import ds_to_universal
from safetensors import SafetensorError

from multicoco.engine.deepspeed import whole_state_dict
from multicoco.engine.manifest import damage, describe, flush, seal
from multicoco.engine.ranks import agree, gather, rank, world_size
from multicoco.engine.state_files import StateFiles
from multicoco.errors import UserError
from multicoco.models.backbone import Backbone
from multicoco.tracking import write_json, write_text

_DEEPSPEED_TAG = "state"
T = TypeVar("T")


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands.

    Attributes:
        epoch: finished epochs.
        stage: the one trained last.
        step: optimizer steps of the whole run.
        epoch_step: optimizer steps into the epoch after the finished ones.
        accuracy: of the evaluation after the last epoch; None without one, or within an epoch.
        best_accuracy: of the run so far.
        global_batch, world_size, zero_stage: with which it was written.
        data: SHA-256 of the files the records came from.
        wandb_id: of the W&B run, to go on with it.
        versions: of the software that wrote it.
    """

    epoch: int
    stage: int
    step: int
    epoch_step: int = 0
    accuracy: float | None = None
    best_accuracy: float | None = None
    global_batch: int | None = None
    world_size: int | None = None
    zero_stage: int | None = None
    data: dict[str, str] = field(default_factory=dict)
    wandb_id: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"epoch_{self.epoch:04d}" + (f"_step_{self.step:08d}" if self.epoch_step else "")


@dataclass(frozen=True)
class _Pending:
    """A checkpoint on its way to disk.

    Attributes:
        path: where it will be; until it is whole, it is `unfinished`.
        written: this rank's files of it, described for the manifest, once they are on disk.
    """

    path: Path
    unfinished: Path
    written: Future[dict[str, dict]]


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        keep: how many of the newest stay; the best `keep_best` by accuracy, and always the very best, stay besides.
        asynchronous: checkpoints are written from a copy of the state in the CPU's memory, so that training can go on
            before `finish`; otherwise it must come first.
    """

    def __init__(self, run_dir: Path, keep: int, keep_best: int, asynchronous: bool = False):
        self.run_dir = run_dir
        self.root = run_dir / "checkpoints"
        self.keep = keep
        self.keep_best = keep_best
        self.asynchronous = asynchronous
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None

    def save(self, engine: DeepSpeedEngine, backbone: Backbone, state: TrainerState, config: str) -> None:
        """Starts to write a checkpoint beside the others; `finish` makes it one of them. All ranks call it.

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
        self._pending = _Pending(path, unfinished, self._writer.submit(write))

    def _prepare(self, unfinished: Path) -> None:
        self.remove_leftovers()
        if not self.run_dir.is_dir():
            raise OSError(f"the run folder {self.run_dir} is gone")
        unfinished.mkdir(parents=True)

    def _collect(
        self, engine: DeepSpeedEngine, backbone: Backbone, state: TrainerState, config: str, folder: Path
    ) -> Callable[[], dict[str, dict]]:
        """Everything that this rank has to write; what is returned writes and describes it."""
        files = engine.checkpoint_engine = StateFiles(copying=self.asynchronous)
        engine._copy_recovery_script = lambda folder: None  # the weights are written for `from_pretrained`
        engine.save_checkpoint(str(folder / "deepspeed"), tag=_DEEPSPEED_TAG, save_latest=False)
        contents = files.contents | {folder / "random" / f"rank_{rank()}.pt": _random_state()}
        weights = whole_state_dict(backbone.model)

        def write() -> dict[str, dict]:
            for path, content in contents.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(content, path)
            written = list(contents)
            if weights is not None:
                backbone.save_pretrained(folder / "model", weights)
                write_json(folder / "trainer.json", asdict(state))
                write_text(folder / "config.yaml", config)
                written += [*(folder / "model").iterdir(), folder / "trainer.json", folder / "config.yaml"]
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
        """Waits until the checkpoint that is being written, if there is one, is whole and on disk, names it, then
        prunes. All ranks call it.

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

    def _publish(self, pending: _Pending, described: dict[str, dict]) -> None:
        seal(pending.unfinished, described)
        pending.unfinished.rename(pending.path)
        flush(self.root)
        write_text(self.root / "latest", pending.path.name)
        self.prune()

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
        try:
            if fits:
                loaded, _ = engine.load_checkpoint(str(path / "deepspeed"), tag=_DEEPSPEED_TAG)
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
            _set_random_state(torch.load(own, weights_only=True))

    def _load_universal(self, engine: DeepSpeedEngine, path: Path) -> str | None:
        converted = self.root / f"{path.name}.removed"  # a leftover, should this process be killed
        with _plain_data_only():
            agree(lambda: _to_universal(path / "deepspeed" / _DEEPSPEED_TAG, converted), only_rank_0=True)
            engine._config.load_universal_checkpoint = True
            try:
                loaded, _ = engine.load_checkpoint(str(converted), tag=_DEEPSPEED_TAG)
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
        paths = agree(lambda: sorted(all_checkpoints(self.root), key=_age_key, reverse=True), only_rank_0=True)
        for path in paths:
            problems = damage(path)
            if not problems:
                return path
            agree(lambda path=path, problems=problems: _put_aside(path, problems), only_rank_0=True)
        if paths:
            raise UserError(f"every checkpoint in {self.root} is damaged: start again under another name")
        return None

    def prune(self) -> None:
        """Removes all but the newest `keep` and the best `keep_best`; a crash in between leaves whole checkpoints."""
        states = {path: read_state(path) for path in all_checkpoints(self.root)}
        newest = sorted(states, key=_age_key, reverse=True)
        evaluated = [path for path in states if states[path].accuracy is not None]
        best = sorted(evaluated, key=lambda path: rank_key(states[path]), reverse=True)
        kept = {*newest[: self.keep], *best[: max(1, self.keep_best)]}
        for path in states.keys() - kept:
            path.rename(path.with_name(f"{path.name}.removed"))
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """What a crash in the middle of saving or pruning has left."""
        for pattern in ("*.unfinished", "*.removed"):
            for path in self.root.glob(pattern):
                shutil.rmtree(path)


@contextmanager
def _plain_data_only() -> Iterator[None]:
    """Inside, no torch.load runs code, not even DeepSpeed's own, which ask for it."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]


def _to_universal(source: Path, target: Path) -> None:
    """DeepSpeed's conversion, by which a checkpoint becomes independent of ranks and ZeRO stage."""
    shutil.rmtree(target, ignore_errors=True)
    (target / _DEEPSPEED_TAG).mkdir(parents=True)
    options = Namespace(  # relative: it takes a path's brackets and such for patterns
        input_folder=str(source.relative_to(target.parent)),
        output_folder=str(Path(target.name, _DEEPSPEED_TAG)),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with chdir(target.parent), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            ds_to_universal.main(options)
        _fit_every_stage(source, target / _DEEPSPEED_TAG)
    except Exception as error:  # rank 0 alone has it, so it must become one that `agree` passes on
        raise UserError(f"{source} cannot be converted for another number of ranks: {error!r}") from error


def _fit_every_stage(source: Path, target: Path) -> None:
    """DeepSpeed reads a converted checkpoint at stage 3 only if it was written there, and below only from below: each
    looks for the same numbers in places and shapes of its own. Here they are put where either looks."""
    names = {"mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"}  # counters, schedule
    for missing in [name for name in names if not (target / name).exists()]:
        [present] = names - {missing}
        shutil.copy2(source / present, target / missing)
    path = target / "zero" / "optimizer_state.pt"
    common = torch.load(path, weights_only=True)
    parameters = [file.parent for file in path.parent.glob("*/exp_avg.pt")]
    if "optimizer_state_dict" in common:  # from stage 3: AdamW's step count once
        step = common["optimizer_state_dict"]["state"][0]["step"]
        groups = torch.load(target / "zero_pp_rank_0_mp_rank_00_model_states.pt", weights_only=True)["param_shapes"]
        shapes = {name: shape for group in groups for name, shape in group.items()}
        for folder in parameters:
            torch.save(step, folder / "step.pt")
            for file in (folder / f"{key}.pt" for key in ("fp32", "exp_avg", "exp_avg_sq")):
                flat = torch.load(file, weights_only=True)
                torch.save({"param": flat.view(shapes[folder.name])}, file)
    else:  # with every parameter
        step = torch.load(parameters[0] / "step.pt", weights_only=True)
        common["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": common["param_groups"]}
    torch.save({"ds_version": deepspeed.__version__} | common, path)


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


def _random_state() -> dict[str, Any]:
    _, keys, *rest = np.random.get_state()
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": (keys.tolist(), *rest)}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def all_checkpoints(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("epoch_*/trainer.json") if not path.parent.suffix)


def read_state(path: Path) -> TrainerState:
    """Raises UserError when the file is not what this version writes."""
    try:
        return TrainerState(**json.loads((path / "trainer.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path / 'trainer.json'} cannot be read: {error}") from error


def _age_key(path: Path) -> tuple[int, ...]:
    """From the name, since the files may be damaged: (epochs, steps)."""
    return tuple(int(part) for part in path.name.split("_") if part.isdigit())


def rank_key(state: TrainerState) -> tuple[float, int]:
    """Sorts checkpoints by accuracy, of equals the later one last."""
    return (state.accuracy, state.epoch)


def find_weights(load_model_path: str) -> tuple[str, str]:
    """What to load for `load_model_path`, and how it was chosen, for the log.

    A run folder gives its best checkpoint by accuracy, or the latest where none was evaluated; a checkpoint folder its
    weights; anything else is left to transformers (a Hugging Face directory or a hub id). Collective.

    Raises:
        UserError: the weights are damaged.
    """
    chosen, how = agree(lambda: _choose_weights(Path(load_model_path)), only_rank_0=True)
    if chosen is None:
        return load_model_path, load_model_path
    if problems := damage(chosen, below="model/"):
        raise UserError(f"the weights of {how} are damaged: {'; '.join(problems)}; load another checkpoint")
    return str(chosen / "model"), how


def _choose_weights(path: Path) -> tuple[Path | None, str]:
    if (path / "trainer.json").exists():
        return path, f"checkpoint {path}"
    states = {checkpoint: read_state(checkpoint) for checkpoint in all_checkpoints(path / "checkpoints")}
    if not states:
        return None, str(path)
    evaluated = [checkpoint for checkpoint in states if states[checkpoint].accuracy is not None]
    best = max(evaluated, key=lambda checkpoint: rank_key(states[checkpoint]), default=None)
    chosen, why = (best, "best") if best else (max(states, key=_age_key), "latest")
    return chosen, f"{why} checkpoint of {path}: {chosen.name}"
