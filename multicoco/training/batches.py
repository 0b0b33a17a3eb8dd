"""The training data, step by step."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, Supervision
from multicoco.data.collate import Collator
from multicoco.data.example import Example
from multicoco.data.loader import RankBatches, ReasoningDataset, make_loader
from multicoco.data.order import Sizes
from multicoco.engine.assembly import Assembly
from multicoco.engine.ranks import rank, world_size
from multicoco.engine.sizes import ExampleSizes, measure_sizes
from multicoco.methods import Method, Part


class TrainingBatches:
    """This rank's micro-batches of every optimizer step.

    Attributes:
        global_batch: examples of an optimizer step, over all ranks.
        steps_per_epoch: optimizer steps.
    """

    def __init__(self, config: RunConfig, examples: Sequence[Example], assembly: Assembly, method: Method):
        self.config = config
        self.assembly = assembly
        self.method = method
        self.global_batch = config.batch_size * config.gradient_accumulation_steps * world_size()
        self.keep(examples)

    def keep(self, examples: Sequence[Example]) -> None:
        """Trains on these."""
        self.examples = examples
        self.steps_per_epoch = -(-len(examples) // self.global_batch)
        self.sizes: ExampleSizes | None = None  # until they are asked for

    def steps(self, part: Part, epoch: int, done: int) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each step of a part of an epoch, without the epoch's that are done. Collective."""
        config, backbone, method, stage = self.config, self.assembly.backbone, self.method, part.stage
        dataset = ReasoningDataset(
            self.examples,
            self.assembly.encoder,
            method.asked,
            partial(_train_row, method=method, stage=stage, epoch=epoch),
            draws=f"{config.seed}/{epoch}",
            arrange_donor=method.donor_row if method.borrows and method.rows(stage) > 1 else None,
            supervise=partial(_supervision, method=method, stage=stage, epoch=epoch),
        )
        batches = RankBatches(
            len(dataset),
            config.batch_size,
            rank(),
            world_size(),
            config.gradient_accumulation_steps,
            seed=f"{config.seed}/{epoch}",
            done=max(done, part.first),
            until=part.end,
            sizes=self._sizes_in(epoch),
        )
        collator = Collator(
            backbone.tokenizer.pad_token_id,
            self.assembly.reasoner.latent_token_id,
            backbone.family.batch,
            min_length=method.passes(stage),
        )
        loader = iter(make_loader(dataset, batches, collator, config.num_workers))
        while micro_batches := list(islice(loader, config.gradient_accumulation_steps)):
            yield micro_batches

    def _sizes_in(self, epoch: int) -> Sizes | None:
        """In the epoch's first stage: all of its parts have the order of one."""
        if not self.config.group_by_length:
            return None
        if self.sizes is None:
            encoder, asked, workers = self.assembly.encoder, self.method.asked, self.config.num_workers
            self.sizes = measure_sizes(self.examples, encoder, asked, workers)
        return self.sizes.at(self.method, self.method.parts(epoch, self.steps_per_epoch)[0].stage)

    def ids(self, batch: dict[str, Any]) -> list[str]:
        """Of the examples that count in a batch, each once."""
        counted = [i for i, counts in zip(batch["index"], batch["counted"], strict=True) if counts]
        return [self.examples[i].id for i in dict.fromkeys(counted)]


def _train_row(
    example: Example, tokens: ExampleTokens, method: Method, stage: int, epoch: int
) -> tuple[list[int], list[int]]:
    return method.train_row(tokens, stage, epoch, example.id)


def _supervision(example: Example, tokens: ExampleTokens, method: Method, stage: int, epoch: int) -> Supervision | None:
    return method.supervision(tokens, stage, epoch, example.id)
