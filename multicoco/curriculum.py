"""The curriculum: which stage an epoch is in, and what of an example is latent in it. No torch, no state.

Follows Coconut (Hao et al. 2024, arXiv:2412.06769, section 3) and the authors' implementation of it:
stage k replaces the first k written steps by k * c_thought latent tokens; past `max_latent_stage` every written
step goes and max_latent_stage * c_thought latent tokens stand for them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

IGNORE_INDEX = -100  # label of a position that carries no loss, PyTorch's and transformers' convention


@dataclass(frozen=True)
class StageSchedule:
    """From epoch to stage, and from stage to the counts of latent tokens.

    Attributes:
        c_thought: latent tokens per replaced step.
        max_latent_stage: the last stage that adds latent tokens; the one after it drops all written steps.
        epochs_per_stage: one number for every stage, or one per stage from the first on (the last one repeats).
        pad_latent_to_max: use max_latent_stage latent steps where an example has fewer steps.
        uniform_prob: probability that an example draws its stage uniformly from 0 .. its number of steps.
        first_stage: the stage of epoch 0.
        seed: of the draws.
        ends_early: whether a stage that is learned ends before its epochs are over.
        ended_early: the numbers of finished epochs after which one has.
    """

    c_thought: int = 1
    max_latent_stage: int = 0
    epochs_per_stage: int | Sequence[int] = 1
    pad_latent_to_max: bool = False
    uniform_prob: float = 0.0
    first_stage: int = 0
    seed: int = 0
    ends_early: bool = False
    ended_early: tuple[int, ...] = ()

    def stage(self, epoch: int) -> int:
        """The scheduled stage of an epoch, both counted from 0; the stage past max_latent_stage has no next one."""
        lengths = [self.epochs_per_stage] if isinstance(self.epochs_per_stage, int) else self.epochs_per_stage
        number, in_stage = 0, 0
        for finished in range(1, epoch + 1):
            in_stage += 1
            if finished in self.ended_early or in_stage == lengths[min(number, len(lengths) - 1)]:
                number, in_stage = number + 1, 0
        return min(self.first_stage + number, self.max_latent_stage + 1)

    @property
    def n_stages(self) -> int:
        """From the first one to the one past max_latent_stage."""
        return self.max_latent_stage + 2 - self.first_stage

    def reachable(self, n_epochs: int) -> set[int]:
        """The stages that so many epochs can come to."""
        first = self.stage(0)
        last = min(first + n_epochs - 1, self.max_latent_stage + 1) if self.ends_early else self.stage(n_epochs - 1)
        return {*range(first, last + 1)}

    def example_stage(self, stage: int, epoch: int, example_id: str, n_steps: int) -> int:
        """The stage one example is trained at: the scheduled one or, with `uniform_prob`, another.

        A function of (seed, epoch, example_id) alone, so it is the same on any number of ranks.
        """
        draw = random.Random(f"{self.seed}/{epoch}/{example_id}")
        return draw.randint(0, n_steps) if draw.random() < self.uniform_prob else stage

    def train_counts(self, stage: int, n_steps: int) -> tuple[int, int]:
        """(written steps that are replaced, latent tokens that stand for them) of a training example."""
        if stage <= self.max_latent_stage:
            return min(stage, n_steps), stage * self.c_thought
        latent_steps = self.max_latent_stage if self.pad_latent_to_max else min(n_steps, self.max_latent_stage)
        return n_steps, latent_steps * self.c_thought

    def eval_latents(self, stage: int, n_steps: int) -> int:
        """Latent tokens in front of an example's answer at evaluation. n_steps 0 (unknown) counts as enough."""
        enough = self.pad_latent_to_max or n_steps == 0
        return min(stage, self.max_latent_stage if enough else min(n_steps, self.max_latent_stage)) * self.c_thought

    def max_latents(self, stage: int) -> int:
        """The most latent tokens an example can have in a stage; passes over the language model are one more.

        A property of the stage alone: every rank and step can agree on it without communication.
        """
        reachable = self.max_latent_stage if self.uniform_prob > 0 else min(stage, self.max_latent_stage)
        return reachable * self.c_thought

    def step_of(self, thought: int) -> int:
        """The written step that a thought stands for, both counted from 0: c_thought thoughts for each, in order.

        An example may have fewer steps: thoughts beyond them stand for none.
        """
        return thought // self.c_thought


@dataclass(frozen=True)
class LatentTokens:
    """Token ids of `<|start-latent|>`, `<|latent|>` and `<|end-latent|>`."""

    start: int
    latent: int
    end: int

    def block(self, n_latents: int) -> list[int]:
        return [self.start, *[self.latent] * n_latents, self.end]


@dataclass(frozen=True)
class ExampleTokens:
    """A tokenized example: prompt (chat template, image tokens, question), written steps, answer with end of turn.

    Attributes:
        answer_prefix: tokens of the answer that say that it comes.
    """

    prompt: list[int]
    steps: list[list[int]] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    answer_prefix: int = 0


@dataclass(frozen=True)
class Branch:
    """Another way on from a row's first tokens, without thoughts.

    Attributes:
        after: how many tokens of the row it follows; at least one.
        input_ids, labels: (S,), its own.
    """

    after: int
    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Fork:
    """Where the rows of a batch (B, T) divide, and have their branches: columns [branch, T) follow column - 1, as those
    of [column, branch) do, and see nothing of these."""

    column: int
    branch: int


@dataclass(frozen=True)
class Supervision:
    """What a method's loss asks of a training row beside its labels.

    Attributes:
        stretches: of each of its thoughts, the tokens of the written reasoning that it stands for.
        branch: another way on from its first tokens; either all rows of a batch have one or none.
        answer: tokens at the row's end, and at its branch's, that come after the answer has been announced.
    """

    stretches: Sequence[Sequence[int]] = ()
    branch: Branch | None = None
    answer: int = 0


def stretches(steps: Sequence[Sequence[int]], n_latent_steps: int, c_thought: int) -> list[list[int]]:
    """What each of n_latent_steps * c_thought thoughts stands for: tokens of the steps that they replace.

    Latent step j stands for step j, the last one for all steps from there on; a latent step past the steps for none.
    Its thoughts share its tokens in their order, as evenly as whole tokens allow; a token of a step that has fewer of
    them than thoughts is that of several.
    """
    of_latent_steps = [*steps[: n_latent_steps - 1], [*chain.from_iterable(steps[n_latent_steps - 1 :])]]
    shared: list[list[int]] = []
    for j in range(n_latent_steps):
        tokens = list(of_latent_steps[j]) if j < len(of_latent_steps) else []
        bounds = [i * len(tokens) // c_thought for i in range(c_thought + 1)]
        shared += [tokens[start : max(end, start + 1)] for start, end in pairwise(bounds)]
    return shared


def layout(tokens: ExampleTokens, n_replaced: int, latent_block: Sequence[int]) -> tuple[list[int], list[int]]:
    """Lays an example out as prompt, latent block, the steps still written, answer.

    Args:
        tokens: the example, tokenized part by part.
        n_replaced: how many of its first steps are left out.
        latent_block: `LatentTokens.block`, or () for a sequence without latent reasoning.

    Returns:
        input_ids and labels, both (T,): labels are IGNORE_INDEX over prompt and latent block, the token ids after.
    """
    context = [*tokens.prompt, *latent_block]
    written = [*chain.from_iterable(tokens.steps[n_replaced:]), *tokens.answer]
    return context + written, [IGNORE_INDEX] * len(context) + written
