"""The training data, step by step."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, Supervision
from multicoco.data.collate import Collator
from multicoco.data.example import Example
from multicoco.data.loader import RankBatches, ReasoningDataset, make_loader
from multicoco.data.order import LaneOrder, Order, grouped
from multicoco.data.stream import StreamedExamples
from multicoco.engine.assembly import Assembly
from multicoco.engine.lengths import refuse_too_long
from multicoco.engine.ranks import rank, world_size
from multicoco.engine.records import lengths_file
from multicoco.engine.sizes import ExampleSizes, measure_sizes
from multicoco.methods import Method, Part
from multicoco.models.checks import position_limit

Check = Callable[[ExampleTokens], None]  # may raise


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

    @property
    def stages(self) -> list[int]:
        """All that the run can come to."""
        epochs = self.config.num_epochs
        scheduled = {part.stage for epoch in range(epochs) for part in self.method.parts(epoch, self.steps_per_epoch)}
        return sorted(scheduled | self.method.schedule.reachable(epochs))

    def steps(self, part: Part, epoch: int, done: int) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each step of a part of an epoch, without the epoch's that are done. Collective.

        Raises:
            UserError: an example cannot be read; of a stream, it is bad or too long, and not to be left out.
        """
        config, backbone = self.config, self.assembly.backbone
        dataset = self._dataset(part.stage, epoch)
        batches = RankBatches(
            len(dataset),
            config.batch_size,
            rank(),
            world_size(),
            config.gradient_accumulation_steps,
            seed=f"{config.seed}/{epoch}",
            done=max(done, part.first),
            until=part.end,
            order=self._order(epoch),
        )
        n_passes = self.method.passes(part.stage)
        # rows that take one pass are not lined up, as that would take more columns
        latent = self.assembly.reasoner.latent_token_id if n_passes > 1 else None
        collator = Collator(backbone.tokenizer.pad_token_id, latent, backbone.family.batch, min_length=n_passes)
        loader = iter(make_loader(dataset, batches, collator, config.num_workers))
        while micro_batches := list(islice(loader, config.gradient_accumulation_steps)):
            yield micro_batches

    def _dataset(self, stage: int, epoch: int) -> ReasoningDataset:
        config, method, examples = self.config, self.method, self.examples
        check: Check = _fits
        is_asked = self.assembly.reasoner.objective is not None
        of_a_stream = {}
        if isinstance(examples, StreamedExamples):
            positions = position_limit(self.assembly.backbone.model)
            check = partial(refuse_too_long, config, positions, method, self.stages)
            of_a_stream = {"instead": examples.instead}
        return ReasoningDataset(
            examples,
            self.assembly.encoder,
            method.asked,
            partial(_train_row, method=method, stage=stage, epoch=epoch, check=check),
            draws=f"{config.seed}/{epoch}",
            arrange_donor=method.donor_row if method.borrows and method.rows(stage) > 1 else None,
            supervise=partial(_supervision, method=method, stage=stage, epoch=epoch, is_asked=is_asked),
            **of_a_stream,
        )

    def _order(self, epoch: int) -> Order | LaneOrder | None:
        """None: the usual one. Grouped by the lengths in the epoch's first stage: all of its parts have one order."""
        config, examples, seed = self.config, self.examples, f"{self.config.seed}/{epoch}"
        if isinstance(examples, StreamedExamples):
            lanes = LaneOrder(examples.pieces, seed, self.global_batch, config.stream_lanes, config.shuffle_buffer)
            own = range(rank(), self.global_batch // config.batch_size, world_size())
            rows = [piece * config.batch_size + row for piece in own for row in range(config.batch_size)]
            examples.room = lanes.pieces_at_once(rows)
            return lanes
        if not config.group_by_length:
            return None
        if self.sizes is None:
            encoder, asked = self.assembly.encoder, self.method.asked
            about = encoder.prompt.date, asked, len(self.assembly.backbone.tokenizer)
            remembered = lengths_file(config, examples, "parts", *about)
            self.sizes = measure_sizes(examples, encoder, asked, config.num_workers, remembered)
        sizes = self.sizes.at(self.method, self.method.parts(epoch, self.steps_per_epoch)[0].stage)
        return grouped(sizes, seed, self.global_batch)

    def ids(self, batch: dict[str, Any]) -> list[str]:
        """Of the examples that count in a batch, each once."""
        counted = [i for i, counts in zip(batch["index"], batch["counted"], strict=True) if counts]
        return [self.examples[i].id for i in dict.fromkeys(counted)]


def _fits(tokens: ExampleTokens) -> None:
    """What has been measured before training does."""


def _train_row(
    example: Example, tokens: ExampleTokens, method: Method, stage: int, epoch: int, check: Check
) -> tuple[list[int], list[int]]:
    check(tokens)
    return method.train_row(tokens, stage, epoch, example.id)


def _supervision(
    example: Example, tokens: ExampleTokens, method: Method, stage: int, epoch: int, is_asked: bool
) -> Supervision | None:
    """An objective asks it of every row, be it to know which of them count."""
    found = method.supervision(tokens, stage, epoch, example.id)
    return Supervision() if found is None and is_asked else found
