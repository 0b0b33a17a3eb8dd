"""The prompt that a checkpoint was asked with, as a text around a question."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from multicoco.data.example import Example
from multicoco.data.prompt import prompts_of_run
from multicoco.export.checkpoint import Checkpoint
from multicoco.models.families import Family

_QUESTION = "What is in the middle"


@dataclass(frozen=True)
class Prompt:
    """Attributes:
    before, after: the text around a question, control tokens, an image's token and the thoughts' among it.
    choices: how the choices red and blue would follow the question.
    n_latents: thoughts in it.
    is_whole: the text as a whole becomes the tokens that training makes of its parts.
    """

    question: str
    before: str
    after: str
    choices: str
    n_latents: int
    is_whole: bool


class _OneToken:
    """Images as the chat template writes them: a processor makes the rest of it."""

    def __init__(self, family: Family):
        self.content = family.content

    def place_images(self, ids: list[int], tokens: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return ids


def prompt_of(checkpoint: Checkpoint) -> Prompt:
    """As its evaluation asks, with one image where the model sees any."""
    config, reader, method = checkpoint.config, checkpoint.reader, checkpoint.method
    prompt = prompts_of_run(config, reader.tokenizer, _OneToken(reader.family), checkpoint.state.prompt_date)
    images = (Path("image"),) * reader.family.sees_images

    def ids(choices: tuple[str, ...]) -> list[int]:
        example = Example("question", _QUESTION, images, choices, (), None, None)
        return method.prompt_row(prompt(example, method.asked, [1] * len(images)), checkpoint.state.stage)

    def text(ids: list[int]) -> str:
        return str(reader.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    row = ids(())
    before, _, after = text(row).partition(_QUESTION)
    _, _, with_choices = text(ids(("red", "blue"))).partition(_QUESTION)
    return Prompt(
        _QUESTION,
        before,
        after,
        with_choices.removesuffix(after),
        method.count_thoughts(row),
        reader.tokenizer.encode(text(row), add_special_tokens=False) == row,
    )
