"""A run: stages, epochs and steps on DeepSpeed, an evaluation and a checkpoint after each epoch; or evaluation only."""

import math
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic, perf_counter

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from multicoco.config import RunConfig
from multicoco.curriculum import IGNORE_INDEX, StageSchedule
from multicoco.data.aokvqa import load_examples
from multicoco.data.collate import Collator
from multicoco.data.example import Example
from multicoco.data.loader import RankBatches, ReasoningDataset, make_loader, train_layout
from multicoco.data.prompt import PromptBuilder, Reasoning
from multicoco.engine.checkpoint import Checkpoints, TrainerState, all_checkpoints, find_weights, read_state
from multicoco.engine.deepspeed import build_engine, device, forget_trace, init_distributed, model_shape
from multicoco.engine.ds_config import resolve_ds_config
from multicoco.engine.optimizer import reset_optimizer_state, start_schedule
from multicoco.engine.preemption import Preempted, StopSignal
from multicoco.engine.ranks import agree, gather
from multicoco.engine.resume import check_unchanged, file_hash, lock_run_folder
from multicoco.engine.watchdog import Watchdog
from multicoco.errors import UserError
from multicoco.evaluation.evaluate import LatentBudget, evaluate
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.authors import load_authors_weights
from multicoco.models.backbone import Backbone, load_backbone
from multicoco.models.freezing import freeze
from multicoco.models.lora import add_lora
from multicoco.models.vocabulary import add_latent_tokens
from multicoco.tracking import Tracker
from multicoco_kernels import implementation

# neither is the user's to act on, and both come once a process
warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="'set_vital' is deprecated", category=UserWarning)

NO_LATENT = -1  # an id no token has

_TRAINED_REASONING: dict[str, Reasoning] = {
    "cot_train": "cot",
    "coconut_train": "coconut",
    "vanilla_train": "vanilla",
}


def build_schedule(config: RunConfig) -> StageSchedule:
    """The run's curriculum; one without latent reasoning stays in stage 0."""
    coconut = config.coconut
    if not coconut.enabled:
        return StageSchedule(epochs_per_stage=config.num_epochs)
    default_first = 1 if config.load_model_path else 0
    return StageSchedule(
        c_thought=coconut.c_thought,
        max_latent_stage=coconut.max_latent_stage,
        epochs_per_stage=coconut.epochs_per_stage,
        pad_latent_to_max=coconut.pad_latent_to_max,
        uniform_prob=coconut.uniform_prob,
        first_stage=default_first if coconut.first_stage is None else coconut.first_stage,
        seed=config.seed,
    )


class LossWindow:
    """Loss and throughput over the steps since the last reading. Reading is collective."""

    def __init__(self, device: torch.device):
        self.device = device
        self._start()

    def _start(self) -> None:
        self.started, self.steps, self.tokens = perf_counter(), 0, 0
        self.loss = torch.zeros((), device=self.device)

    def add(self, loss_share: Tensor, counts: Tensor, skipped: bool) -> None:
        """One optimizer step: this rank's share of the loss, and the global (labelled, all) token counts.

        The loss of a skipped step is not finite, or not worth looking at, and does not count.
        """
        if not skipped:
            self.steps += 1
            self.loss += loss_share
        self.tokens = self.tokens + counts[1]

    def read(self) -> dict[str, float]:
        """The mean loss per step, unless all were skipped, and tokens per second over all ranks."""
        dist.all_reduce(self.loss)
        seconds = perf_counter() - self.started
        metrics = {"train/tokens_per_s": int(self.tokens) / seconds}
        if self.steps:
            metrics["train/loss"] = self.loss.item() / self.steps
        self._start()
        return metrics


class Trainer:
    """Everything one run needs, built from its config; `run` does it.

    Args:
        allow_change: config keys that may differ from those of the checkpoint the run goes on from.

    Raises:
        UserError: data, model, checkpoint or ds_config do not fit; on every rank, before anything is written.
    """

    def __init__(self, config: RunConfig, allow_change: Collection[str] = ()):
        self.config = config
        transformers_logging.disable_progress_bar()  # one bar of its own is enough
        self.rank, self.world_size = init_distributed()
        self.watchdog = Watchdog(config.lost_rank_seconds)
        self.device = device()
        self.schedule = build_schedule(config)
        self.training = config.mode != "eval_only"
        self.checkpoints = Checkpoints(
            config.run_dir, config.max_checkpoints_to_keep, config.keep_best_checkpoints, config.asynchronous_save
        )
        if self.training:
            agree(self._check_run_folder)
        self.train_examples = self._load(config.train_path, config.max_train_samples) if self.training else []
        self.val_examples = self._load(config.val_path, config.max_val_samples) if config.val_path else []

        set_seed(config.seed)
        self.backbone, self.reasoner = agree(self._load_model)
        model_config = self.backbone.model.config
        self.prompt = PromptBuilder(
            self.backbone.tokenizer,
            config.answer_format,
            getattr(model_config, "image_token_id", None),
            getattr(model_config, "image_seq_length", None),
            config.direct_instruction,
            config.reasoning_instruction,
        )
        if self.training:
            most_latents = self.schedule.max_latents(self.schedule.max_latent_stage)
            path, shape = Path(config.deepspeed), model_shape(self.reasoner, passes=most_latents + 1)
            self.ds_config = agree(lambda: resolve_ds_config(path, config, self.world_size, shape))
            self.engine = build_engine(self.reasoner, config, self.ds_config)
        else:
            self.reasoner.to(self.device)
        self.run_lock = agree(lambda: lock_run_folder(config.run_dir) if self.rank == 0 else None)
        set_seed(config.seed + self.rank)
        self.first_epoch, self.epoch_step, self.stage, self.step = 0, 0, None, 0
        self.best_accuracy, wandb_id, self.skipped_in_a_row = None, None, 0
        if self.training:
            self.stop = StopSignal()
            self.save_started, self.slowest_save = 0.0, 0.0
            wandb_id = self._find_start(allow_change)
        self.tracker = agree(lambda: Tracker(config.run_dir, config, wandb_id, enabled=self.rank == 0))

    def run(self) -> None:
        """Trains and evaluates, or only evaluates.

        Raises:
            Preempted: a rank was signalled to end; a checkpoint was written first.
            UserError: a checkpoint could not be written, and `on_save_error` is to stop.
        """
        try:
            if self.training:
                self._train()
            else:
                self._evaluate("final", self.schedule.max_latent_stage)
        except RuntimeError as error:
            self.watchdog.explain(error)
            raise
        self.tracker.close()
        self.watchdog.stop()

    def _load(self, path: str, limit: int | None) -> list[Example]:
        config, root = self.config, Path(self.config.data_dir)
        image_dir = Path(config.image_dir) if config.image_dir else root
        return agree(
            lambda: load_examples(root / path, image_dir, config.steps_from, config.on_bad_record, limit),
            only_rank_0=True,
        )

    def _check_run_folder(self) -> None:
        """Before the long part of the start; what is found is checked again when the folder is this run's own."""
        exist = all_checkpoints(self.checkpoints.root)
        if self.config.resume is True and not exist:
            raise UserError(f"no checkpoint in {self.checkpoints.root}: set resume: auto to start from the beginning")
        if not self._goes_on and exist:
            raise UserError(
                f"{self.config.run_dir} already holds checkpoints: set resume: auto to go on with that run, "
                "or another name"
            )

    def _load_model(self) -> tuple[Backbone, LatentReasoner]:
        config = self.config
        try:
            implementation(config.kernel, self.device)
        except ValueError as error:
            raise UserError(str(error)) from error
        source, chosen = find_weights(config.load_model_path) if config.load_model_path else (config.model_id, None)
        if chosen and self.rank == 0:
            print(f"weights: {chosen}", flush=True)
        authors_file = Path(source) if Path(source).is_file() else None
        source = config.model_id if authors_file else source
        dtype = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else torch.float32
        backbone = load_backbone(source, dtype, config.max_image_tiles, config.trust_remote_code)
        if authors_file:
            load_authors_weights(backbone, authors_file, config.coconut.latent_init_token)
        if config.coconut.enabled:
            add_latent_tokens(backbone, config.coconut.latent_init_token)
        latent = backbone.latent_tokens
        if self.training:
            if config.lora.rank:
                add_lora(backbone.model, **config.lora.model_dump(), new_tokens=latent.block(1) if latent else ())
            freeze(backbone.model, **config.freeze.model_dump())
        try:
            return backbone, LatentReasoner(backbone.model, latent.latent if latent else NO_LATENT, config.kernel)
        except ValueError as error:
            raise UserError(f"model {source!r}: {error}") from error

    @property
    def _goes_on(self) -> bool:
        """From a checkpoint of its own, if there is one. Not `in`: 1, an epoch to skip, equals True."""
        return self.config.resume is True or self.config.resume == "auto"

    def _find_start(self, allow_change: Collection[str]) -> str | None:
        """Where training starts: at the beginning, after the skipped epochs, or where a checkpoint stands.

        Returns: the id of the W&B run to go on with.
        """
        config = self.config
        self.global_batch = config.batch_size * config.gradient_accumulation_steps * self.world_size
        self.steps_per_epoch = -(-len(self.train_examples) // self.global_batch)
        self.data = agree(self._hash_data, only_rank_0=True)
        if not self._goes_on:
            self.first_epoch = int(config.resume)
            return None
        path = self.checkpoints.newest_whole()
        if path is None:
            return None
        state = agree(lambda: read_state(path), only_rank_0=True)
        changes = agree(
            lambda: check_unchanged(path, state, config, self.data, self.global_batch, allow_change), only_rank_0=True
        )
        if self.rank == 0:
            print(f"going on from {path}", *(f"  changed: {change}" for change in changes), sep="\n", flush=True)
        self._start_schedule(state.stage)  # DeepSpeed then puts it where it was
        agree(lambda: self.checkpoints.load(self.engine, path, state))
        self.first_epoch, self.epoch_step = state.epoch, state.epoch_step
        self.stage, self.step, self.best_accuracy = state.stage, state.step, state.best_accuracy
        return state.wandb_id

    def _hash_data(self) -> dict[str, str]:
        paths = {"train_path": self.config.train_path, "val_path": self.config.val_path}
        return {key: file_hash(Path(self.config.data_dir) / path) for key, path in paths.items() if path}

    def _train(self) -> None:
        config = self.config
        remaining = (config.num_epochs - self.first_epoch) * self.steps_per_epoch - self.epoch_step
        with self.tracker.progress(remaining, "training") as progress:
            for epoch in range(self.first_epoch, config.num_epochs):
                self._enter_stage(self.schedule.stage(epoch))
                accuracy = None
                try:
                    self._train_epoch(epoch, progress)
                    is_last = epoch + 1 == config.num_epochs
                    if self.val_examples and (is_last or (epoch + 1) % config.eval_every_epochs == 0):
                        accuracy = self._evaluate(f"epoch_{epoch + 1:04d}", self.stage)
                except Preempted:
                    self._save(epoch)
                    self._finish_save()
                    raise
                self.epoch_step = 0
                improved = accuracy is not None and (self.best_accuracy is None or accuracy > self.best_accuracy)
                if improved:
                    self.best_accuracy = accuracy
                if improved or not config.save_only_improve:
                    self._save(epoch + 1, accuracy)
        self._finish_save()

    def _enter_stage(self, stage: int) -> None:
        """At a transition the optimizer and the schedule start again; without `reset_optimizer` they go on."""
        if stage == self.stage:
            return
        first, self.stage = self.stage is None, stage
        if self.ds_config["zero_optimization"]["stage"] == 3:
            forget_trace(self.engine)
        if self.config.reset_optimizer and not first:
            reset_optimizer_state(self.engine)
        if self.config.reset_optimizer or first:
            self._start_schedule(stage)

    def _start_schedule(self, stage: int) -> None:
        """The learning-rate schedule spans the stage or, without restarts, the whole run."""
        epochs = range(self.config.num_epochs)
        spanned = [e for e in epochs if self.schedule.stage(e) == stage] if self.config.reset_optimizer else epochs
        rates = self.config.coconut.stage_lr or [self.config.lr]
        lr = rates[min(stage - self.schedule.first_stage, len(rates) - 1)]
        start_schedule(self.engine, self.config, lr, len(spanned) * self.steps_per_epoch)

    def _train_epoch(self, epoch: int, progress: tqdm) -> None:
        """Trains what is left of an epoch."""
        config, stage, started = self.config, self.stage, perf_counter()
        progress.set_description(f"stage {stage} epoch {epoch + 1}/{config.num_epochs}")
        window = LossWindow(self.device)
        for micro_batches in self._optimizer_steps(epoch):
            skipped_before = self.engine.skipped_steps
            losses, counts = self._train_step(micro_batches)
            self.step += 1
            self.epoch_step += 1
            skipped = self.engine.skipped_steps > skipped_before
            window.add(losses.sum(), counts, skipped)
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
            if self.skipped_in_a_row == config.max_skipped_steps:
                self._finish_save()
                agree(lambda: self._give_up(micro_batches, losses))  # noqa: B023
            progress.update()
            is_last = self.epoch_step == self.steps_per_epoch
            if self.step % config.log_every_steps == 0 or is_last:
                metrics = window.read()
                throughput = f"{metrics['train/tokens_per_s']:.0f}"
                shown = {"loss": f"{metrics['train/loss']:.4f}" if "train/loss" in metrics else "not finite"}
                if self.engine.skipped_steps:
                    metrics["train/skipped_steps"] = shown["skipped"] = self.engine.skipped_steps
                progress.set_postfix(shown, tokens_s=throughput, refresh=False)
                learning_rate = self.engine.lr_scheduler.get_last_lr()[0]
                where = {"train/stage": stage, "train/epoch": epoch + 1, "train/lr": learning_rate}
                self.tracker.log(metrics | where, self.step)
            self._look_around()
            if config.save_every_steps and self.step % config.save_every_steps == 0 and not is_last:
                self._save(epoch)
        self.tracker.log({"train/epoch_seconds": perf_counter() - started, "train/epoch": epoch + 1}, self.step)

    def _optimizer_steps(self, epoch: int) -> Iterator[list[dict]]:
        """This rank's micro-batches of each optimizer step that is left of an epoch."""
        config, latent = self.config, self.backbone.latent_tokens
        arrange = partial(train_layout, schedule=self.schedule, stage=self.stage, epoch=epoch, latent_tokens=latent)
        dataset = ReasoningDataset(
            self.train_examples,
            self.prompt,
            self.backbone.image_processor,
            _TRAINED_REASONING[config.mode],
            arrange,
        )
        batches = RankBatches(
            len(dataset),
            config.batch_size,
            self.rank,
            self.world_size,
            config.gradient_accumulation_steps,
            seed=f"{config.seed}/{epoch}",
            done=self.epoch_step,
        )
        collator = Collator(self.backbone.tokenizer.pad_token_id, latent and latent.latent, min_length=self._n_passes)
        loader = iter(make_loader(dataset, batches, collator, config.num_workers))
        while micro_batches := list(islice(loader, config.gradient_accumulation_steps)):
            yield micro_batches

    @property
    def _n_passes(self) -> int:
        """Passes over the language model: one number for all ranks and steps of a stage, as ZeRO-3 needs."""
        return self.schedule.max_latents(self.stage) + 1

    def _train_step(self, micro_batches: list[dict]) -> tuple[Tensor, Tensor]:
        """One optimizer step. The loss is the mean over the labelled tokens of the global batch, however it is cut up.

        Returns: this rank's shares of that mean, one per micro-batch (those of all ranks add up to it), and the global
        counts of labelled and of all tokens.
        """
        labelled = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in micro_batches)
        total = sum(int(batch["attention_mask"].sum()) for batch in micro_batches)
        counts = torch.tensor([labelled, total], device=self.device)
        dist.all_reduce(counts)
        # DeepSpeed divides by the ranks and by the accumulation steps, whatever each of them holds
        divisor = counts[0] / (self.world_size * len(micro_batches))
        shares = []
        for batch in micro_batches:
            inputs = {
                key: None if batch[key] is None else batch[key].to(self.device, non_blocking=True)
                for key in ("input_ids", "attention_mask", "labels", "pixel_values")
            }
            loss = self.engine(**inputs, n_passes=self._n_passes, loss_divisor=divisor).loss
            self.engine.backward(loss)
            self.engine.step()
            shares.append(loss.detach() / (self.world_size * len(micro_batches)))
        return torch.stack(shares), counts

    def _give_up(self, micro_batches: list[dict], losses: Tensor) -> None:
        """When too many steps in a row were skipped: every rank tells what it trained on in the last one."""
        seen = []
        for batch, loss in zip(micro_batches, losses.tolist(), strict=True):
            ids = [
                self.train_examples[i].id for i, counts in zip(batch["index"], batch["counted"], strict=True) if counts
            ]
            seen.append(f"rank {self.rank}: {'loss' if math.isfinite(loss) else 'LOSS NOT FINITE'} of {', '.join(ids)}")
        said = "\n  ".join(line for lines in gather(seen) for line in lines)
        raise UserError(
            f"step {self.step} (stage {self.stage}) is number {self.skipped_in_a_row} in a row that was skipped: its "
            f"gradient is not finite. It was trained on\n  {said}\n"
            "Lower lr or max_grad_norm, train in bf16 instead of fp16, look at these examples, or go on from an "
            "earlier checkpoint; max_skipped_steps allows more"
        )

    def _look_around(self) -> None:
        """Between batches, on all ranks: ends the run if any rank was signalled to, and finishes a checkpoint that all
        ranks have written.

        Raises:
            Preempted, UserError: as `run`.
        """
        flags = torch.tensor([self.stop.received is not None, self.checkpoints.is_writing], device=self.device).int()
        dist.all_reduce(flags)
        stopped, writing = flags.tolist()
        if stopped:
            raise Preempted
        if not writing:
            self._finish_save()

    def _save(self, epoch: int, accuracy: float | None = None) -> None:
        """A checkpoint after so many epochs and `self.epoch_step` steps of the next; it may be finished later."""
        self._finish_save()
        state = TrainerState(
            epoch,
            self.stage,
            self.step,
            self.epoch_step,
            accuracy,
            self.best_accuracy,
            self.global_batch,
            self.world_size,
            self.ds_config["zero_optimization"]["stage"],
            self.data,
            self.tracker.wandb_id,
            self.tracker.environment,
        )
        self.save_started = monotonic()
        with self._save_errors():
            self.checkpoints.save(self.engine, self.backbone, state, self.config.to_yaml())
            self.tracker.log({"save/blocked_seconds": monotonic() - self.save_started}, self.step)
        if not self.config.asynchronous_save:
            self._finish_save()

    def _finish_save(self) -> None:
        """Waits for the checkpoint that is being written, if there is one."""
        if not self.checkpoints.is_unfinished:
            return
        with self._save_errors():
            self.checkpoints.finish()
            seconds, grace = monotonic() - self.save_started, self.config.preemption_grace_seconds
            self.tracker.log({"save/seconds": seconds}, self.step)
            if seconds > max(grace, self.slowest_save) and self.rank == 0:
                tqdm.write(
                    f"a save took {seconds:.0f} s, preemption_grace_seconds is {grace}: when preempted, this run may "
                    "have to go on from an earlier checkpoint; set save_every_steps",
                    file=sys.stderr,
                )
            self.slowest_save = max(self.slowest_save, seconds)

    @contextmanager
    def _save_errors(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            if self.config.on_save_error == "stop":
                raise
            if self.rank == 0:
                tqdm.write(f"error: {error}; training goes on (on_save_error: continue)", file=sys.stderr)

    def _evaluate(self, name: str, stage: int) -> float | None:
        """Evaluates in the config's modes, by default the trained one.

        Returns: the accuracy in the trained mode, or else in the first one; what checkpoints are ranked by.
        """
        trained = _TRAINED_REASONING.get(self.config.mode)
        modes = [mode for mode in ("cot", "coconut", "vanilla") if getattr(self.config.eval_config, mode)] or [trained]
        budget = LatentBudget(self.schedule, stage, self.config.eval_config.eval_latent_tokens)
        accuracies = {}
        for mode in modes:
            summary, samples = evaluate(
                self.reasoner,
                self.backbone,
                self.prompt,
                self.val_examples,
                mode,
                self.config,
                budget,
                self.tracker,
                sharded_weights=self.training and self.ds_config["zero_optimization"]["stage"] == 3,
                before_batch=self._look_around if self.training else None,
            )
            self.tracker.log_evaluation(name, mode, summary, samples, self.step)
            accuracies[mode] = summary["accuracy"]
        return accuracies.get(trained, accuracies[modes[0]])
