"""Training by a run config: stages -> epochs -> steps -> evaluation -> checkpoint."""

from collections.abc import Collection, Sequence
from pathlib import Path
from time import perf_counter
from typing import NoReturn

from tqdm import tqdm
from transformers import set_seed

from multicoco.config import RunConfig
from multicoco.data.example import Example
from multicoco.data.loader import check_donors
from multicoco.data.sources import require_answers, require_steps
from multicoco.data.sources.location import locate
from multicoco.engine.assembly import Assembly, assemble, prompt_date, weights_of
from multicoco.engine.checkpoint import Checkpoints
from multicoco.engine.deepspeed import build_engine, model_shape
from multicoco.engine.ds_config import resolve_ds_config
from multicoco.engine.lengths import those_that_fit
from multicoco.engine.preemption import Preempted
from multicoco.engine.process_group import ProcessGroup
from multicoco.engine.ranks import agree
from multicoco.engine.rates import learning_rates
from multicoco.engine.records import at_hand, lengths_file, load_records, load_training_records, without_answer
from multicoco.engine.resume import lock_run_folder
from multicoco.engine.trainer_state import TrainerState
from multicoco.engine.weights import embedding_rows
from multicoco.errors import UserError
from multicoco.evaluation.answers import is_correct
from multicoco.evaluation.evaluator import Evaluator, check_questions
from multicoco.methods import Part, method_class
from multicoco.models.checks import position_limit
from multicoco.tracking import Tracker
from multicoco.training.batches import TrainingBatches
from multicoco.training.lookout import Lookout
from multicoco.training.loss_window import LossWindow
from multicoco.training.saver import Saver
from multicoco.training.skip_limit import SkipLimit
from multicoco.training.stages import Stages
from multicoco.training.start import Start
from multicoco.training.step import train_step
from multicoco.training.thought_window import ThoughtWindow
from multicoco.training.transfer import Transfer


class Trainer:
    """Everything one training run needs, built from its config; `run` does it.

    Args:
        allow_change: config keys that may differ from those of the checkpoint the run goes on from.

    Raises:
        UserError: data, model, checkpoint or ds_config do not fit; on every rank, before anything is written.
    """

    def __init__(self, config: RunConfig, allow_change: Collection[str] = ()):
        self.config = config
        self.group = group = ProcessGroup(config.lost_rank_seconds)
        checkpoints = Checkpoints(
            config.run_dir,
            config.max_checkpoints_to_keep,
            config.keep_best_checkpoints,
            config.asynchronous_save,
            keep_stage_before=method_class(config.trained_method)(config).collapse_below is not None,
        )
        start = Start(config, checkpoints, allow_change)
        earlier = start.check_folder()
        examples = load_training_records(config)
        looked_at = at_hand(config, examples)
        location, unanswered = locate(config.data_dir, str(config.train_path)), without_answer(looked_at)
        agree(lambda: require_answers(unanswered, len(looked_at), location), only_rank_0=True)
        self.questions = load_records(config, config.val_path, config.max_val_samples)

        set_seed(config.seed)
        weights = weights_of(config)
        date = prompt_date(config, earlier, weights.state)
        n_rows = embedding_rows(checkpoints.root / earlier.name) if earlier else None
        assembly = assemble(config, weights, date, looked_at, group.device, n_rows)
        self.method = method_class(config.trained_method)(config, assembly.backbone.latent_tokens)
        self.batches = TrainingBatches(config, examples, assembly, self.method)
        positions, stages = position_limit(assembly.backbone.model), self.batches.stages
        remembered = lengths_file(config, looked_at, date, stages, len(assembly.backbone.tokenizer))
        fitting = those_that_fit(config, positions, looked_at, assembly.encoder, self.method, stages, remembered)
        if not config.streaming:  # by which the others are measured when they come
            self.batches.keep(fitting)
        agree(lambda: self._check_purpose(fitting, assembly), only_rank_0=True)
        shape = model_shape(assembly.reasoner, max(map(self.method.passes, stages)))
        ds_config = agree(lambda: resolve_ds_config(Path(config.deepspeed), config, group.size, shape))
        self.engine = build_engine(assembly.reasoner, config, ds_config)
        self.run_lock = agree(lambda: lock_run_folder(config.run_dir) if group.rank == 0 else None)

        set_seed(config.seed + group.rank)
        data = start.hash_data()
        self.stages = Stages(config, self.engine, self.method, self.batches.steps_per_epoch, checkpoints)
        self.at, wandb_id = start.find(self.engine, self.stages, data, self.batches.global_batch)
        next_step = self.at.step + self.at.evaluated  # a missing evaluation of the last one is made up for
        self.tracker = agree(lambda: Tracker(config.run_dir, config, wandb_id, group.rank == 0, next_step))
        if left_out := not config.streaming and len(looked_at) - len(fitting):
            self.tracker.log({"data/examples": len(fitting), "data/too_long": left_out}, self.at.step)
        origin = TrainerState(
            epoch=0,
            stage=0,
            step=0,
            global_batch=self.batches.global_batch,
            world_size=group.size,
            zero_stage=self.engine.zero_optimization_stage(),
            data=data,
            wandb_id=self.tracker.wandb_id,
            method=config.trained_method,
            prompt_date=date,
            versions=self.tracker.environment,
        )
        if assembly.features:  # of the weights that the engine has now
            assembly.features.keep(fitting)
        self.saver = Saver(config, checkpoints, self.engine, assembly.backbone, self.tracker, origin, self.at)
        self.look_around = Lookout(self.saver, group.device)
        self.transfer = Transfer(group.device, assembly.backbone.family.host_inputs)
        self.skip_limit = SkipLimit(config.max_skipped_steps, self.batches)
        self.thoughts = ThoughtWindow(
            assembly.reasoner.latent_token_id, config.batch_size, config.gradient_accumulation_steps
        )
        sharded = self.engine.zero_optimization_stage() == 3
        self.evaluator = Evaluator(config, assembly, self.questions, self.tracker, sharded, self.look_around)

    def _check_purpose(self, examples: Sequence[Example], assembly: Assembly) -> None:
        """What would make the run pointless, or break it in its middle, is said before it starts."""
        config = self.config
        if self.method.needs_steps:
            require_steps(examples, locate(config.data_dir, str(config.train_path)), config.trained_method)
        if self.method.borrows:
            check_donors(len(examples), "train_path")
        if config.save_only_improve and all(is_correct(None, question) is None for question in self.questions):
            raise UserError(
                f"save_only_improve is true, but no answer is known in {config.val_path}: accuracy would never improve "
                "and nothing be saved. Set it to false, or name records with answers"
            )
        check_questions(config, assembly, self.batches.stages, self.questions)

    def run(self) -> None:
        """Trains.

        Raises:
            Preempted: a rank was signalled to end; a checkpoint was written first.
            UserError: a checkpoint could not be written, and `on_save_error` is to stop; too many steps were
                skipped; or a stage has collapsed.
        """
        with self.group.watched():
            self._train()
            self.saver.finish()
            self.tracker.close()

    def _train(self) -> None:
        at, config = self.at, self.config
        remaining = (config.num_epochs - at.epoch) * self.batches.steps_per_epoch - at.epoch_step
        with self.tracker.progress(remaining, "training") as progress:
            if not at.evaluated:
                self._evaluate(at.epoch)
            for epoch in range(at.epoch, config.num_epochs):
                try:
                    self._train_epoch(epoch, progress)
                except Preempted:
                    self.saver.save()
                    self.saver.finish()
                    raise
                at.epoch, at.epoch_step = epoch + 1, 0
                is_due = self._evaluation_is_due(at.epoch)
                if is_due or not config.save_only_improve:  # before the evaluation: it must not cost a trained epoch
                    self.saver.save(awaits_evaluation=is_due)
                self._evaluate(at.epoch)

    def _train_epoch(self, epoch: int, progress: "tqdm[NoReturn]") -> None:
        """Trains what is left of an epoch."""
        started, window = perf_counter(), LossWindow(self.group.device)
        for part in self.stages.of_epoch(epoch):
            if self.at.epoch_step < part.end:
                self.stages.enter(part.stage, self.at)
                self._train_part(part, epoch, window, progress)
        self.tracker.log({"train/epoch_seconds": perf_counter() - started, "train/epoch": epoch + 1}, self.at.step)

    def _train_part(self, part: Part, epoch: int, window: LossWindow, progress: "tqdm[NoReturn]") -> None:
        at, config, n_passes = self.at, self.config, self.method.passes(part.stage)
        progress.set_description(f"stage {part.stage} epoch {epoch + 1}/{config.num_epochs}")
        for micro_batches in self.transfer.ahead(self.batches.steps(part, epoch, at.epoch_step)):
            skipped_before = self.engine.skipped_steps
            flags = self.look_around.flags()
            losses, counts, thoughts, flagged = train_step(self.engine, self.method, micro_batches, n_passes, flags)
            at.step, at.epoch_step = at.step + 1, at.epoch_step + 1
            at.tokens, at.passes = at.tokens + counts[1], at.passes + n_passes * len(micro_batches)
            skipped = self.engine.skipped_steps > skipped_before
            columns = sum(batch["input_ids"].numel() for batch in micro_batches)
            window.add(losses.sum(), counts, columns, skipped)
            self.thoughts.add(micro_batches, thoughts, skipped)
            if self.skip_limit.add(skipped):
                self.saver.finish()
                self.skip_limit.give_up(micro_batches, losses, at)
            progress.update()
            is_last = at.epoch_step == self.batches.steps_per_epoch
            if at.step % config.log_every_steps == 0 or is_last:
                self._log(window.read() | self.thoughts.read(), epoch, progress)
            self.look_around.heed(flagged.read())
            if config.save_every_steps and at.step % config.save_every_steps == 0 and not is_last:
                self.saver.save()

    def _log(self, metrics: dict[str, float], epoch: int, progress: "tqdm[NoReturn]") -> None:
        shown = {"loss": f"{metrics['train/loss']:.4f}" if "train/loss" in metrics else "not finite"}
        if self.engine.skipped_steps:
            metrics["train/skipped_steps"] = self.engine.skipped_steps
            shown["skipped"] = str(self.engine.skipped_steps)
        progress.set_postfix(shown, tokens_s=f"{metrics['train/tokens_per_s']:.0f}", refresh=False)
        where = {"train/stage": self.at.stage, "train/epoch": epoch + 1}
        self.tracker.log(metrics | where | learning_rates(self.engine, self.config.lr), self.at.step)

    def _evaluate(self, epochs: int) -> None:
        """After so many epochs, if it is due; the accuracy goes to the checkpoint, or decides whether it stays."""
        if not self._evaluation_is_due(epochs):
            return
        assert self.at.stage is not None
        accuracy = self.evaluator.run(f"epoch_{epochs:04d}", self.at.stage, self.at.step)
        improved = self.at.note_accuracy(accuracy)
        self.saver.note_evaluation(accuracy, keep=improved or not self.config.save_only_improve)
        self.stages.note_accuracy(accuracy, self.at)

    def _evaluation_is_due(self, epochs: int) -> bool:
        is_last = epochs == self.config.num_epochs
        return bool(self.questions) and epochs > 0 and (is_last or epochs % self.config.eval_every_epochs == 0)
