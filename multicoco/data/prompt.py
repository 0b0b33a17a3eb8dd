"""From an example to token ids: the model's chat template, image tokens, choices, steps and answer.

Only the template's own text may hold control tokens: questions, choices and steps are encoded with special tokens
switched off, so "<|latent|>" or "<|im_end|>" in a question is ordinary text.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, cast

from transformers import PreTrainedTokenizerBase

from multicoco.curriculum import ExampleTokens
from multicoco.data.example import Example
from multicoco.errors import UserError

ANSWER_PREFIX = "Answer:"

AnswerFormat = Literal["letter", "index", "text"]
Asked = Literal["answer", "reasoning"]  # what a prompt asks for: the answer alone, or reasoning before it

# the call by which Llama 3.2's and others' templates read the clock
_CLOCK = re.compile(r"""strftime_now\s*\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")
_USER_TEXT = "\N{OBJECT REPLACEMENT CHARACTER}user-text\N{OBJECT REPLACEMENT CHARACTER}"


class ImageTokens(Protocol):
    """How a model family shows images in a prompt (`models.families.Family`)."""

    def content(self, text: str, n_images: int) -> str | list[dict[str, str]]:
        """A user's turn for the chat template."""

    def place_images(self, ids: list[int], tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The template's ids with every image's tokens in place."""


class _NoImages:
    """Of a prompt for a model that sees none."""

    def content(self, text: str, n_images: int) -> str:
        return text

    def place_images(self, ids: list[int], tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return ids


def choice_label(index: int, answer_format: AnswerFormat) -> str:
    """What stands for a choice: "B" (letter) or "1" (index)."""
    return chr(ord("A") + index) if answer_format == "letter" else str(index)


class PromptBuilder:
    """Tokenizes examples part by part, so that a stage can leave steps out without changing the other tokens.

    Args:
        answer_format: how choices are shown and named in the answer.
        images: the model's family; None for text alone.
        direct_instruction, reasoning_instruction: last line of a question that asks for the answer, and for reasoning.
        date: YYYY-MM-DD, for chat templates that write the day's date; None where there is none to be written.

    Raises:
        UserError: when called, if the chat template does not fit: it loses the question, shows the images otherwise
            than once each, or asks for a date that is not given.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        answer_format: AnswerFormat = "letter",
        images: ImageTokens | None = None,
        direct_instruction: str = "",
        reasoning_instruction: str = "",
        date: str | None = None,
    ):
        self.tokenizer = tokenizer
        self.answer_format = answer_format
        self.images = images or _NoImages()
        self.direct_instruction = direct_instruction
        self.reasoning_instruction = reasoning_instruction
        self.date = date
        self._templates: dict[int, tuple[list[int], list[int]]] = {}  # by the number of images

    def __call__(self, example: Example, asked: Asked = "reasoning", image_tokens: Sequence[int] = ()) -> ExampleTokens:
        """Tokens of one example whose images take so many tokens each.

        If only the answer is asked for, the prompt ends with the answer's prefix: the model can do nothing but answer.
        """
        before, after = self._template(len(image_tokens))
        prompt = [
            *self.images.place_images(before, image_tokens, self.tokenizer),
            *self._encode(self._question(example, asked)),
            *after,
        ]
        prefix, steps = self._encode(ANSWER_PREFIX), [self._encode(f"{step}\n") for step in example.steps]
        if asked == "answer":
            prompt, prefix, steps = [*prompt, *prefix], [], []
        answer: list[int] = []
        if example.answer is not None:
            answer = [*prefix, *self._encode(f" {self._answer(example)}"), self.tokenizer.eos_token_id]
        return ExampleTokens(prompt, steps, answer, len(prefix) if asked == "reasoning" else 0)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def _template(self, n_images: int) -> tuple[list[int], list[int]]:
        """The token ids before and after the user's text, up to the assistant's turn."""
        if n_images not in self._templates:
            self._templates[n_images] = self._render(n_images)
        return self._templates[n_images]

    def _render(self, n_images: int) -> tuple[list[int], list[int]]:
        if self.tokenizer.chat_template is None:
            return self._beginning_of_text(), self._encode("\n")
        turn: dict[str, Any] = {"role": "user", "content": self.images.content(_USER_TEXT, n_images)}
        rendered = self.tokenizer.apply_chat_template(
            [turn],
            chat_template=self._dated(self.tokenizer.get_chat_template()),
            tokenize=False,  # into a text
            add_generation_prompt=True,
        )
        before, *rest = cast(str, rendered).split(_USER_TEXT)
        if len(rest) != 1:
            raise UserError(
                f"the model's chat template shows a question {len(rest)} times, not once: give the model's folder "
                "(chat_template.jinja or tokenizer_config.json) a template for chats"
            )
        encode = self.tokenizer.encode
        return encode(before, add_special_tokens=False), encode(rest[0], add_special_tokens=False)

    def _beginning_of_text(self) -> list[int]:
        """What the tokenizer itself puts in front of a text: base models have never seen one without."""
        bare = self.tokenizer.encode("a", add_special_tokens=False)
        whole: list[int] = self.tokenizer.encode("a")
        for start in range(len(whole)):
            if whole[start : start + len(bare)] == bare:
                return whole[:start]
        return []

    def _dated(self, template: str) -> str:
        """A chat template with the run's date in the place of today's."""

        def write(call: re.Match[str]) -> str:
            if self.date is None:
                raise UserError("the model's chat template writes the day's date: set prompt_date (YYYY-MM-DD)")
            return json.dumps(datetime.fromisoformat(self.date).strftime(call["format"]))

        dated = _CLOCK.sub(write, template)
        if re.search(r"strftime_now\s*\(", dated):
            raise UserError(
                "the model's chat template writes the time in a form of its own making: give strftime_now a text, as "
                "strftime_now('%d %b %Y'), so that a run's prompts are the same on every day"
            )
        return dated

    def _question(self, example: Example, asked: Asked) -> str:
        lines = [example.question, *self._choice_lines(example.choices)]
        instruction = self.direct_instruction if asked == "answer" else self.reasoning_instruction
        return "\n".join([*lines, instruction] if instruction else lines)

    def _choice_lines(self, choices: Sequence[str]) -> list[str]:
        if not choices:
            return []
        if self.answer_format == "text":
            return [f"The choices are {', '.join(choices)}."]
        return [f"{choice_label(i, self.answer_format)}. {choice}" for i, choice in enumerate(choices)]

    def _answer(self, example: Example) -> Any:
        if example.answer_index is None or self.answer_format == "text":
            return example.answer
        return choice_label(example.answer_index, self.answer_format)
