"""A method, a family and a source as another package would bring them."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from multicoco.curriculum import layout
from multicoco.data.example import Example
from multicoco.data.sources.source import Source
from multicoco.latent.objective import Objective
from multicoco.methods import Method, MethodKeys
from multicoco.models.families.text import Text


class DoublingKeys(MethodKeys):
    factor: float = Field(2.0, gt=0, description="the loss is multiplied by it")

    def problems(self, config: Any) -> Iterator[str]:
        if self.factor == 13:
            yield "doubling.factor is 13: take a luckier one"


class Times(Objective):
    """Asks nothing of the rows."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, reasoner, batch):
        return self.factor * reasoner.language_loss(batch.passes.hidden, batch.labels, batch.divisor)


class Doubling(Method):
    """Learns the answer from the question and its thoughts, in one stage, and makes much of it."""

    section = "doubling"
    Keys = DoublingKeys
    has_thoughts = True

    def train_row(self, tokens, stage, epoch, example_id):
        return layout(tokens, len(tokens.steps), self.latent_tokens.block(2))

    def prompt_row(self, tokens, stage):
        return [*tokens.prompt, *self.latent_tokens.block(2)]

    def passes(self, stage):
        return 3

    def prompt_passes(self, stage):
        return 3

    def thought_source(self):
        return lambda hidden, k: hidden.detach()

    def objective(self, model):
        return Times(self.section_of(DoublingKeys).factor)


class Backwards(Text):
    """Qwen2 whose positions count down: asked before the built-in families."""

    @classmethod
    def matches(cls, config):
        return config.model_type == "qwen2"

    def position_ids(self, input_ids, attention_mask, inputs):
        positions = super().position_ids(input_ids, attention_mask, inputs)
        return positions.max(dim=-1, keepdim=True).values - positions


class Sums(Source):
    """{"sum": [1, 2]}"""

    keys = frozenset({"sum"})

    @classmethod
    def matches(cls, record):
        return "sum" in record

    def parse(self, record, record_id):
        first, second = record["sum"]
        return Example(record_id, f"Add {first} to {second}.", (), (), (), str(first + second), None, judge="number")
