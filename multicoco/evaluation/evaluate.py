"""Evaluation in a mode (vanilla, cot, coconut): batched generation over all ranks, every example counted once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from transformers import GenerationConfig

from multicoco.config import RunConfig
from multicoco.curriculum import StageSchedule
from multicoco.data.collate import Collator
from multicoco.data.example import Example
from multicoco.data.loader import RankBatches, ReasoningDataset, make_loader, prompt_layout
from multicoco.data.prompt import PromptBuilder, Reasoning
from multicoco.evaluation.answers import ANSWER_PREFIX, extract_answer, is_correct
from multicoco.evaluation.metrics import summarize
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import Backbone
from multicoco.tracking import Tracker


@dataclass(frozen=True)
class LatentBudget:
    """Latent tokens in front of the answers at evaluation.

    Attributes:
        schedule, stage: the curriculum's rule.
        fixed: use this many for every example instead.
    """

    schedule: StageSchedule
    stage: int
    fixed: int | None = None

    def count(self, n_steps: int) -> int:
        return self.schedule.eval_latents(self.stage, n_steps) if self.fixed is None else self.fixed

    @property
    def most(self) -> int:
        return self.schedule.max_latents(self.stage) if self.fixed is None else self.fixed


def evaluate(
    reasoner: LatentReasoner,
    backbone: Backbone,
    prompt: PromptBuilder,
    examples: Sequence[Example],
    mode: Reasoning,
    config: RunConfig,
    budget: LatentBudget,
    tracker: Tracker,
    sharded_weights: bool = False,
    before_batch: Callable[[], None] | None = None,
) -> tuple[dict, list[dict]]:
    """Generates an answer to every example and marks it. All ranks call it and get the same result.

    Args:
        sharded_weights: ZeRO-3 holds the weights, so ranks must run the same number of decoding steps.
        before_batch: called before every batch, on all ranks; may raise to end the evaluation.

    Returns:
        The summary (`metrics.summarize`, with mode and seconds) and the samples in the order of `examples`.
    """
    latent = backbone.latent_tokens if mode == "coconut" else None
    n_latents = budget.most if latent else 0
    dataset = ReasoningDataset(
        examples,
        prompt,
        backbone.image_processor,
        mode,
        partial(prompt_layout, count_latents=budget.count, latent_tokens=latent),
    )
    collator = Collator(
        backbone.tokenizer.pad_token_id,
        latent and latent.latent,
        for_generation=True,
        min_length=n_latents + 1,
    )
    batches = RankBatches(len(examples), config.eval_batch_size, dist.get_rank(), dist.get_world_size())
    generation_config = GenerationConfig(
        **config.generation.model_dump(),
        eos_token_id=backbone.end_token_ids,
        pad_token_id=backbone.tokenizer.pad_token_id,
    )
    device = reasoner.decoder.device
    was_training = reasoner.training
    reasoner.eval()
    started, samples = time.time(), []
    with torch.random.fork_rng(), tracker.progress(len(batches), f"evaluating {mode}") as progress:
        torch.manual_seed(config.seed + dist.get_rank())
        for batch in make_loader(dataset, batches, collator, config.num_workers):
            if before_batch is not None:
                before_batch()
            pixel_values = batch["pixel_values"]
            tokens = reasoner.generate(
                batch["input_ids"].to(device),
                batch["attention_mask"].to(device),
                None if pixel_values is None else pixel_values.to(device),
                n_passes=n_latents + 1,
                generation_config=generation_config,
                synced_gpus=sharded_weights and dist.get_world_size() > 1,
            )
            for index, counted, ids, new in zip(
                batch["index"], batch["counted"], batch["input_ids"].tolist(), tokens.tolist(), strict=True
            ):
                if counted:
                    passes = ids.count(latent.latent) if latent else 0
                    samples.append((index, _sample(examples[index], new, passes, mode, backbone, config)))
            progress.update()
    reasoner.train(was_training)

    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, samples)
    ordered = [sample for _, sample in sorted((pair for part in gathered for pair in part), key=lambda pair: pair[0])]
    return {"mode": mode, **summarize(ordered), "seconds": time.time() - started}, ordered


def _sample(
    example: Example, new_ids: list[int], latent_passes: int, mode: Reasoning, backbone: Backbone, config: RunConfig
) -> dict:
    """One line of the samples file. new_tokens counts the end-of-text token, and nothing after it."""
    end = next((i for i, token in enumerate(new_ids) if token in backbone.end_token_ids), len(new_ids))
    new_ids = new_ids[: end + 1]
    text = backbone.tokenizer.decode(new_ids, skip_special_tokens=True)
    response = f"{ANSWER_PREFIX} {text}" if mode == "vanilla" else text  # its prompt ends with the prefix
    extracted = extract_answer(response, example.choices, config.answer_format)
    return {
        "id": example.id,
        "question": example.question,
        "choices": list(example.choices),
        "generated": text,
        "extracted": extracted,
        "gold": example.answer if example.answer_index is None else example.answer_index,
        "correct": is_correct(extracted, example),
        "new_tokens": len(new_ids),
        "latent_passes": latent_passes,
    }
