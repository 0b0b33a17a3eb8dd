"""Evaluation by a method's prompts: batched generation over all ranks, every example counted once."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.collate import Collator
from multicoco.data.example import Example
from multicoco.data.loader import RankBatches, ReasoningDataset, check_donors, make_loader
from multicoco.data.prompt import ANSWER_PREFIX
from multicoco.engine.assembly import Assembly
from multicoco.engine.ranks import gather, rank, world_size
from multicoco.evaluation.answers import extract_answer, is_correct
from multicoco.evaluation.metrics import summarize
from multicoco.methods import Method, evaluated_methods, method_class
from multicoco.tracking import Tracker


class Evaluator:
    """Answers the validation questions by every method that the config asks for, by default the trained one.

    Args:
        assembly: what is asked, and how examples become its inputs.
        sharded_weights: ZeRO-3 holds the weights, so ranks must run the same number of decoding steps.
        between_batches: called before every batch, on all ranks; may raise to end the evaluation.
        about: what every summary is to say besides, such as the checkpoint.
    """

    def __init__(
        self,
        config: RunConfig,
        assembly: Assembly,
        examples: Sequence[Example],
        tracker: Tracker,
        sharded_weights: bool = False,
        between_batches: Callable[[], None] = lambda: None,
        about: dict[str, Any] | None = None,
    ):
        self.config = config
        self.backbone, self.reasoner, self.encoder = assembly.backbone, assembly.reasoner, assembly.encoder
        self.examples = examples
        self.tracker = tracker
        self.sharded_weights = sharded_weights
        self.between_batches = between_batches
        self.about = about or {}
        self.methods = evaluation_methods(config, self.backbone.latent_tokens)
        if any(method.borrows for method in self.methods.values()):
            check_donors(len(examples), "val_path")
        if self.backbone.ignored_generation and rank() == 0:
            ignored = ", ".join(f"{key} {value}" for key, value in self.backbone.ignored_generation.items())
            print(
                f"evaluating as `generation` of the run config says; the model's generation_config.json has {ignored}",
                flush=True,
            )

    def run(self, name: str, stage: int, step: int) -> float | None:
        """Evaluates at a stage and logs under a name. Collective.

        Returns: the accuracy of the trained method, or else of the first one: what checkpoints are ranked by.
        """
        accuracies: dict[str, float | None] = {}
        for mode, method in self.methods.items():
            summary, samples = self._evaluate(mode, method, stage)
            self.tracker.log_evaluation(name, mode, summary, samples, step)
            accuracies[mode] = summary["accuracy"]
        return accuracies.get(self.config.trained_method, next(iter(accuracies.values())))

    def _evaluate(self, mode: str, method: Method, stage: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Summary and samples, the latter in the order of the examples; the same on all ranks."""
        was_training = self.reasoner.training
        self.reasoner.eval()
        started = time.time()
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed + rank())
            own = self._answer(mode, method, stage)
        self.reasoner.train(was_training)
        ordered = [sample for _, sample in sorted((pair for part in gather(own) for pair in part), key=lambda x: x[0])]
        about = {"mode": mode, "stage": stage, **self.about}
        return {**about, **summarize(ordered), "seconds": time.time() - started}, ordered

    def _answer(self, mode: str, method: Method, stage: int) -> list[tuple[int, dict[str, Any]]]:
        """This rank's share of the samples, each with its example's place."""
        tokenizer, latent = self.backbone.tokenizer, self.reasoner.latent_token_id
        passes = method.prompt_passes(stage)
        dataset = ReasoningDataset(
            self.examples,
            self.encoder,
            method.asked,
            partial(_prompt_row, method=method, stage=stage),
            draws=f"{self.config.seed}/evaluation",
            arrange_donor=method.donor_row if method.borrows and passes > 1 else None,
        )
        collator = Collator(tokenizer.pad_token_id, latent, self.backbone.family.batch, True, min_length=passes)
        batches = RankBatches(len(dataset), self.config.eval_batch_size, rank(), world_size())
        device = self.reasoner.decoder.device
        samples = []
        with self.tracker.progress(len(batches), f"evaluating {mode}") as progress:
            for batch in make_loader(dataset, batches, collator, self.config.num_workers):
                self.between_batches()
                tokens = self.reasoner.generate(
                    batch["input_ids"].to(device),
                    batch["attention_mask"].to(device),
                    **{name: tensor.to(device) for name, tensor in batch["inputs"].items()},
                    n_passes=passes,
                    seeds=batch["seeds"],
                    generation_config=self._generation_config(),
                    synced_gpus=self.sharded_weights and world_size() > 1,
                )
                for index, counted, prompt, new in zip(
                    batch["index"], batch["counted"], batch["input_ids"].tolist(), tokens.tolist(), strict=True
                ):
                    if counted:
                        samples.append((index, self._sample(self.examples[index], prompt, new, method)))
                progress.update()
        return samples

    def _generation_config(self) -> GenerationConfig:
        """The config's `generation`, whatever the model was published with."""
        return GenerationConfig(
            **self.config.generation.model_dump(),
            eos_token_id=self.backbone.end_token_ids,
            pad_token_id=self.backbone.tokenizer.pad_token_id,
        )

    def _sample(self, example: Example, prompt: list[int], new_ids: list[int], method: Method) -> dict[str, Any]:
        """How a response becomes a line of the samples file. new_tokens counts the token that ends it, none after;
        latent_passes the latent tokens that took a pass of their own."""
        latent = self.reasoner.latent_token_id
        ends = [place for place, token in enumerate(new_ids) if token in self.backbone.end_token_ids]
        new_ids = new_ids[: ends[0] + 1] if ends else new_ids
        text = str(self.backbone.tokenizer.decode(new_ids, skip_special_tokens=True))
        response = f"{ANSWER_PREFIX} {text}" if method.asked == "answer" else text  # its prompt ends with the prefix
        extracted = extract_answer(
            response, example.choices, self.config.answer_format, truncated=not ends, judge=example.judge
        )
        return {
            "id": example.id,
            "question": example.question,
            "choices": list(example.choices),
            "generated": text,
            "extracted": extracted,
            "gold": example.answer if example.answer_index is None else example.answer_index,
            "correct": is_correct(extracted, example),
            "truncated": not ends,
            "new_tokens": len(new_ids),
            "latent_tokens": prompt.count(method.latent_tokens.latent) if method.latent_tokens else 0,
            "latent_passes": 0 if latent is None else prompt.count(latent),
        }


def evaluation_methods(config: RunConfig, latent_tokens: LatentTokens | None) -> dict[str, Method]:
    """The methods that a run evaluates by, by their names."""
    return {name: method_class(name)(config, latent_tokens) for name in evaluated_methods(config)}


def _prompt_row(example: Example, tokens: ExampleTokens, method: Method, stage: int) -> tuple[list[int], list[int]]:
    """A prompt, whose labels nobody reads."""
    ids = method.prompt_row(tokens, stage)
    return ids, ids
