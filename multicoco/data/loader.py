"""Data sets and loaders: which example goes to which rank at which step, and how it is laid out in a stage.

Every example of an epoch is seen exactly once, on any number of ranks. Where the numbers do not come out even, filler
rows (an example again, without labels) keep all ranks at the same number of equal batches.
"""

import random
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from multicoco.curriculum import ExampleTokens, Supervision
from multicoco.data.collate import Collator, ImageInputs, Row
from multicoco.data.example import Example, ImageSource, image_size, load_image
from multicoco.data.order import shuffled
from multicoco.data.prompt import Asked, PromptBuilder
from multicoco.errors import UserError

# torchdata's own, once a process, and not the user's to act on
warnings.filterwarnings("ignore", message="'set_vital' is deprecated", category=UserWarning)

T = TypeVar("T")
Pick = tuple[int, bool]  # (index of an example, whether it counts)
Arrange = Callable[[Example, ExampleTokens], tuple[list[int], list[int]]]  # -> input_ids and labels, both (T,)
Supervise = Callable[[Example, ExampleTokens], Supervision | None]
Instead = Callable[[int, UserError], Iterable[int]]  # (who cannot be read, why) -> who may stand there, uncounted
ArrangeDonor = Callable[[ExampleTokens, list[int]], list[int]]  # (the donor's, input_ids of who borrows) -> input_ids


class RankBatches(Sequence[list[Pick]]):
    """Batch sampler: one rank's micro-batches of an epoch, of which only the order is held, if that.

    A global batch of one optimizer step is batch_size * ranks * accumulation examples; micro-batch m of rank r is
    its piece m * ranks + r, so a single process with the same global batch sees the same examples in a step.

    Args:
        n: examples in the data set.
        seed: of the epoch's permutation; None keeps the order (evaluation).
        done: global batches to leave out, because an interrupted epoch has had them.
        until: the global batches from this one on are left out too.
        order: of the examples, in the place of the seed's.
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
        until: int | None = None,
        order: Sequence[int] | NDArray[np.int64] | None = None,
    ):
        self.batch_size = batch_size
        self.global_batch = batch_size * world_size * accumulation
        if order is None:
            order = np.arange(n) if seed is None else shuffled(n, seed)
        self.order = order
        self.pieces = range(rank, world_size * accumulation, world_size)
        self.steps = range(-(-n // self.global_batch))[done:until]

    def __len__(self) -> int:
        return len(self.steps) * len(self.pieces)

    @overload
    def __getitem__(self, place: int) -> list[Pick]: ...

    @overload
    def __getitem__(self, place: slice) -> list[list[Pick]]: ...

    def __getitem__(self, place: int | slice) -> list[Pick] | list[list[Pick]]:
        """The last global batch is filled up with the first examples of the order again, uncounted."""
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        step, piece = divmod(range(len(self))[place], len(self.pieces))
        first = self.steps[step] * self.global_batch + self.pieces[piece] * self.batch_size
        n = len(self.order)
        return [(int(self.order[i % n]), i < n) for i in range(first, first + self.batch_size)]


class Encoder:
    """An example as tokens and image tensors.

    Args:
        read_images: pictures as a model family takes them, their tokens by their sizes alone.

    Attributes:
        kept: gives what is kept of images in the place of their pixels; None where nothing is.
    """

    def __init__(self, prompt: PromptBuilder, read_images: Callable[[Sequence[Image.Image]], ImageInputs]):
        self.prompt = prompt
        self.read_images = read_images
        self.kept: Callable[[Sequence[ImageSource]], ImageInputs] | None = None
        self._of_sizes: dict[tuple[tuple[int, int], ...], Sequence[Any]] = {}  # image tokens, by (width, height)

    def __call__(self, example: Example, asked: Asked) -> tuple[ExampleTokens, dict[str, Tensor]]:
        images = self.images(example)
        return self.prompt(example, asked, images.tokens), images.tensors

    def images(self, example: Example) -> ImageInputs:
        """As they are read, or kept."""
        if self.kept is not None:
            return self.kept(example.images)
        return self._taken(example, [load_image(image) for image in example.images])

    def tokens(self, example: Example, asked: Asked) -> ExampleTokens:
        """The tokens alone, for measuring many examples: of an image, only its size is read."""
        sizes = tuple(image_size(image) for image in example.images)
        if sizes not in self._of_sizes:
            self._of_sizes[sizes] = self._taken(example, [Image.new("RGB", size) for size in sizes]).tokens
        return self.prompt(example, asked, self._of_sizes[sizes])

    def _taken(self, example: Example, pictures: Sequence[Image.Image]) -> ImageInputs:
        """Raises: UserError: the model takes no such picture; names the example."""
        try:
            return self.read_images(pictures)
        except UserError as error:
            raise UserError(f"record {example.id!r:.60}: {error}") from error


def check_donors(n_examples: int, of: str) -> None:
    """Whether every example can borrow from another one.

    Raises:
        UserError: there is one example only; names the file by its key.
    """
    if n_examples == 1:
        raise UserError(f"coconut.thoughts is borrowed but {of} has one example: it takes another one to borrow from")


class ReasoningDataset(Dataset[Row]):
    """Examples as rows. What is drawn for an example depends on `draws` and its id alone.

    Args:
        asked: what the prompts ask for.
        arrange: lays an encoded example out.
        draws: what tells the draws of this epoch of this run from others.
        arrange_donor: lays out another example, for an example that borrows its thoughts; None where none does.
        supervise: what the loss asks of an example besides.
        instead: of an example that cannot be read, those of which one may stand in its place; it may raise.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encoder: Encoder,
        asked: Asked,
        arrange: Arrange,
        draws: str = "",
        arrange_donor: ArrangeDonor | None = None,
        supervise: Supervise = lambda example, tokens: None,
        instead: Instead = lambda index, error: (),
    ):
        self.examples = examples
        self.encoder = encoder
        self.asked = asked
        self.arrange = arrange
        self.draws = draws
        self.arrange_donor = arrange_donor
        self.supervise = supervise
        self.instead = instead

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, pick: Pick) -> Row:
        index, counted = pick
        try:
            return self._row(index, counted)
        except UserError as error:
            for other in self.instead(index, error):
                with suppress(UserError):
                    return self._row(other, counted=False)
            raise

    def _row(self, index: int, counted: bool) -> Row:
        example = self.examples[index]
        tokens, inputs = self.encoder(example, self.asked)
        input_ids, labels = self.arrange(example, tokens)
        seed = int.from_bytes(sha256(f"{self.draws}/{example.id}".encode()).digest()[:8]) >> 1  # of 63 bits
        donor = self._donor(index, seed, input_ids) if self.arrange_donor else None
        return Row(input_ids, labels, index, counted, inputs, seed, donor, self.supervise(example, tokens))

    def _donor(self, index: int, seed: int, input_ids: list[int]) -> Row:
        """Of any other example, each as likely as the next."""
        assert self.arrange_donor is not None
        other = (index + random.Random(seed).randrange(1, len(self))) % len(self)
        tokens, inputs = self.encoder(self.examples[other], self.asked)
        donor_ids = self.arrange_donor(tokens, input_ids)
        return Row(donor_ids, donor_ids, other, counted=False, inputs=inputs)


class _Loader(StatefulDataLoader[Any]):
    """Leaves signals to the rank: a scheduler's notice goes to all processes of a job, and a worker that died of it
    would take its rank along before the rank could save. Workers end with their rank."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # workers inherit what is blocked, so that there is no moment at which they can be hit
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
        try:
            return map(_or_raise, super().__iter__())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Told(Dataset[Any]):
    """A data set whose errors are items, as a worker would raise them as others."""

    def __init__(self, dataset: Dataset[Any]):
        self.dataset: Any = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, pick: Any) -> Any:
        try:
            return self.dataset[pick]
        except UserError as error:
            return error


def _collate(rows: Sequence[Row | UserError], collator: Callable[[Sequence[Row]], T]) -> T | UserError:
    errors = [row for row in rows if isinstance(row, UserError)]
    return errors[0] if errors else collator([row for row in rows if not isinstance(row, UserError)])


def _or_raise(item: T | UserError) -> T:
    if isinstance(item, UserError):
        raise item
    return item


def in_order(dataset: Dataset[T], num_workers: int) -> Iterator[T]:
    """All of a data set, one by one, read by so many processes.

    Raises:
        UserError: while it is iterated, what the data set raises.
    """
    return iter(_Loader(_Told(dataset), batch_size=None, collate_fn=lambda item: item, num_workers=num_workers))


def make_loader(
    dataset: ReasoningDataset, batches: RankBatches, collator: Collator, num_workers: int
) -> StatefulDataLoader[dict[str, Any]]:
    """One rank's loader for one epoch.

    Raises:
        UserError: while it is iterated, an example cannot be read.
    """
    return _Loader(
        _Told(dataset),
        batch_sampler=batches,
        collate_fn=partial(_collate, collator=collator),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
