"""Data sets and loaders: which example goes to which rank at which step, and how it is laid out in a stage.

Every example of an epoch is seen exactly once, on any number of ranks. Where the numbers do not come out even, filler
rows (an example again, without labels) keep all ranks at the same number of equal batches.
"""

import signal
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from multicoco.curriculum import ExampleTokens, LatentTokens, StageSchedule, layout
from multicoco.data.collate import Collator, Row
from multicoco.data.example import Example, load_image
from multicoco.data.prompt import PromptBuilder, Reasoning

Pick = tuple[int, bool]  # (index of an example, whether it counts)


def epoch_batches(n: int, global_batch: int, order: Sequence[int]) -> list[list[Pick]]:
    """The global batches of an epoch: `order` cut into pieces, the last one filled up with uncounted examples."""
    picks = [(index, True) for index in order]
    picks += [(order[i % n], False) for i in range(-n % global_batch)]
    return [picks[i : i + global_batch] for i in range(0, len(picks), global_batch)]


class RankBatches:
    """Batch sampler: one rank's micro-batches of an epoch.

    A global batch of one optimizer step is batch_size * ranks * accumulation examples; micro-batch m of rank r is
    its piece m * ranks + r, so a single process with the same global batch sees the same examples in a step.

    Args:
        n: examples in the data set.
        seed: of the epoch's permutation; None keeps the order (evaluation).
        done: global batches to leave out, because an interrupted epoch has had them.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        rank: int,
        world_size: int,
        accumulation: int = 1,
        seed: str | None = None,
        done: int = 0,
    ):
        order = list(range(n))
        if seed is not None:
            generator = torch.Generator().manual_seed(int.from_bytes(seed.encode(), "little") % 2**63)
            order = torch.randperm(n, generator=generator).tolist()
        pieces = range(rank, world_size * accumulation, world_size)
        self.batches = [
            batch[piece * batch_size : (piece + 1) * batch_size]
            for batch in epoch_batches(n, batch_size * world_size * accumulation, order)[done:]
            for piece in pieces
        ]

    def __iter__(self) -> Iterator[list[Pick]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class ReasoningDataset(Dataset):
    """Examples as tokens and image tiles.

    Args:
        image_processor: transformers' for the model, None for a text-only model.
        arrange: from an example's position and tokens to (input_ids, labels).
    """

    def __init__(
        self,
        examples: Sequence[Example],
        prompt: PromptBuilder,
        image_processor: Callable | None,
        reasoning: Reasoning,
        arrange: Callable,
    ):
        self.examples = examples
        self.prompt = prompt
        self.image_processor = image_processor
        self.reasoning = reasoning
        self.arrange = arrange

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, pick: Pick) -> Row:
        index, counted = pick
        example = self.examples[index]
        pixel_values, n_tiles = None, 0
        if self.image_processor is not None and example.image is not None:
            # [tiles, 3, H, W]; more than one tile ends with the thumbnail of the whole image
            pixel_values = self.image_processor(load_image(example.image), return_tensors="pt").pixel_values
            n_tiles = len(pixel_values)
        tokens = self.prompt(example, self.reasoning, n_tiles)
        input_ids, labels = self.arrange(example, tokens)
        return Row(input_ids, labels, pixel_values, index, counted)


def train_layout(
    example: Example,
    tokens: ExampleTokens,
    schedule: StageSchedule,
    stage: int,
    epoch: int,
    latent_tokens: LatentTokens | None,
) -> tuple[list[int], list[int]]:
    """An example as it is trained in an epoch of a stage; without latent tokens, all of it is written."""
    if latent_tokens is None:
        return layout(tokens, n_replaced=0, latent_block=())
    n_steps = len(tokens.steps)
    n_replaced, n_latents = schedule.train_counts(schedule.example_stage(stage, epoch, example.id, n_steps), n_steps)
    return layout(tokens, n_replaced, latent_tokens.block(n_latents))


def prompt_layout(
    example: Example,
    tokens: ExampleTokens,
    count_latents: Callable[[int], int],
    latent_tokens: LatentTokens | None,
) -> tuple[list[int], list[int]]:
    """What a model is given at evaluation: the prompt and, for latent reasoning, count_latents(steps) latents."""
    block = () if latent_tokens is None else latent_tokens.block(count_latents(len(example.steps)))
    return layout(ExampleTokens(tokens.prompt), n_replaced=0, latent_block=block)


class _Loader(StatefulDataLoader):
    """Leaves signals to the rank: a scheduler's notice goes to all processes of a job, and a worker that died of it
    would take its rank along before the rank could save. Workers end with their rank."""

    def __iter__(self) -> Iterator[dict]:
        # workers inherit what is blocked, so that there is no moment at which they can be hit
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make_loader(
    dataset: ReasoningDataset, batches: RankBatches, collator: Collator, num_workers: int
) -> StatefulDataLoader:
    """One rank's loader for one epoch."""
    return _Loader(
        dataset,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
