"""From an example to token ids: the model's chat template, image tokens, choices, steps and answer.

Only the template's own text may hold control tokens: questions, choices and steps are encoded with special tokens
switched off, so "<|latent|>" or "<|im_end|>" in a question is ordinary text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from multicoco.config.data import AnswerFormat
from multicoco.curriculum import ExampleTokens
from multicoco.data.example import Example
from multicoco.errors import UserError

if TYPE_CHECKING:  # the config itself asks the methods that others bring
    from multicoco.config import RunConfig

ANSWER_PREFIX = "Answer:"

Asked = Literal["answer", "reasoning"]  # what a prompt asks for: the answer alone, or reasoning before it

# the call by which Llama 3.2's and others' templates read the clock
_CLOCK = re.compile(r"""strftime_now\s*\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")
# of each message, the user's and the assistant's in turn: how many images are in front of each piece of its text
Shown = tuple[tuple[int, ...], ...]
_TEXT = "\N{OBJECT REPLACEMENT CHARACTER}text\N{OBJECT REPLACEMENT CHARACTER}"


class ImageTokens(Protocol):
    """How a model family shows images in a prompt (`models.families.Family`)."""

    def content(self, text: str, n_images: int) -> str | list[dict[str, str]]:
        """A user's turn for the chat template."""

    def place_images(self, ids: list[int], tokens: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The template's ids with every image's tokens in place."""


class _NoImages:
    """Of a prompt for a model that sees none."""

    def content(self, text: str, n_images: int) -> str:
        return text

    def place_images(self, ids: list[int], tokens: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return ids


def choice_label(index: int, answer_format: AnswerFormat) -> str:
    """What stands for a choice: "B" (letter) or "1" (index)."""
    return chr(ord("A") + index) if answer_format == "letter" else str(index)


def _interleaved(text: str, places: Sequence[int]) -> tuple[list[str], tuple[int, ...]]:
    """A text in pieces with images between them, and how many images are in front of each piece."""
    cuts = sorted(set(places) - {0})
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return pieces, tuple(places.count(start) for start in [0, *cuts])


class PromptBuilder:
    """Tokenizes examples part by part, so that a stage can leave steps out without changing the other tokens.

    Args:
        answer_format: how choices are shown and named in the answer.
        images: the model's family; None for text alone.
        direct_instruction, reasoning_instruction: last line of a question that asks for the answer, and for reasoning.
        date: YYYY-MM-DD, for chat templates that write the day's date; None where there is none to be written.

    Raises:
        UserError: when called, if the chat template does not fit: it loses the question or what was said before it,
            shows the images otherwise than once each, or asks for a date that is not given.
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
        self.announcement = self._encode(ANSWER_PREFIX)  # what an answer begins with
        self._templates: dict[Shown, list[list[int]]] = {}

    def __call__(self, example: Example, asked: Asked = "reasoning", image_tokens: Sequence[Any] = ()) -> ExampleTokens:
        """Tokens of one example whose images are written in so many tokens each, or as their family says otherwise.

        If only the answer is asked for, the prompt ends with the answer's prefix: the model can do nothing but answer.
        """
        texts, shown = self._messages(example, asked, len(image_tokens))
        tokens = iter(image_tokens)
        prompt: list[int] = []
        for part, n, text in zip(self._template(shown), [*chain(*shown), 0], [*texts, ""], strict=True):
            prompt += self.images.place_images(part, list(islice(tokens, n)), self.tokenizer) + self._encode(text)
        prefix, steps = self.announcement, [self._encode(f"{step}\n") for step in example.steps]
        if asked == "answer":
            prompt, prefix, steps = [*prompt, *prefix], [], []
        answer: list[int] = []
        if example.answer is not None:
            answer = [*prefix, *self._encode(f" {self._answer(example)}"), self.tokenizer.eos_token_id]
        return ExampleTokens(prompt, steps, answer, len(prefix) if asked == "reasoning" else 0)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def _messages(self, example: Example, asked: Asked, n_images: int) -> tuple[list[str], Shown]:
        """What was said before and what is asked, in pieces with images between them; and where these are."""
        messages: list[tuple[str, tuple[int, ...]]] = []
        for turn in example.earlier:
            messages += [(turn.question, turn.image_places), (turn.answer, ())]
        messages.append((self._question(example, asked), example.image_places))
        texts, places = zip(*messages, strict=True)
        if sum(map(len, places)) != n_images:  # they have no places, or are another example's
            places = ((0,) * n_images, *((),) * (len(texts) - 1))
        pieces, shown = zip(*map(_interleaved, texts, places), strict=True)
        return [*chain(*pieces)], shown

    def _template(self, shown: Shown) -> list[list[int]]:
        """The token ids around the pieces of text, up to the assistant's own turn: one more than pieces."""
        if shown not in self._templates:
            self._templates[shown] = self._render(shown)
        return self._templates[shown]

    def _render(self, shown: Shown) -> list[list[int]]:
        if self.tokenizer.chat_template is None:  # a line each
            end = self._encode("\n")
            return [self._beginning_of_text(), *chain(*([*([] for _ in pieces[1:]), end] for pieces in shown))]
        roles = islice(cycle(("user", "assistant")), len(shown))
        turns: list[dict[str, Any]] = [
            {"role": role, "content": self._content(pieces)} for role, pieces in zip(roles, shown, strict=True)
        ]
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns,
                chat_template=self._dated(self.tokenizer.get_chat_template()),
                tokenize=False,  # into a text
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise UserError(f"the model's chat template does not take {len(shown)} messages: {error}") from error
        parts = cast(str, rendered).split(_TEXT)
        if len(parts) != (n_texts := sum(map(len, shown))) + 1:
            expected = "once" if n_texts == 1 else f"{n_texts} times, in its pieces"
            what = "a question" if len(shown) == 1 else f"a conversation of {len(shown)} messages"
            raise UserError(
                f"the model's chat template shows {what} {len(parts) - 1} times, not {expected}: give the model's "
                "folder (chat_template.jinja or tokenizer_config.json) a template for chats"
            )
        return [self.tokenizer.encode(part, add_special_tokens=False) for part in parts]

    def _content(self, n_images: tuple[int, ...]) -> str | list[dict[str, str]]:
        """Of a message for the chat template, with so many images in front of each piece of its text."""
        if len(n_images) == 1:
            return self.images.content(_TEXT, *n_images)
        pieces = [[{"type": "image"}] * n + [{"type": "text", "text": _TEXT}] for n in n_images]
        return [*chain(*pieces)]

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
        lines = [*filter(None, [example.question]), *self._choice_lines(example.choices)]
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


def prompts_of_run(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, images: ImageTokens, date: str | None
) -> PromptBuilder:
    """As a run's config wants questions to be asked; images and date as of `PromptBuilder`."""
    instructions = (config.direct_instruction, config.reasoning_instruction)
    return PromptBuilder(tokenizer, config.answer_format, images, *instructions, date)
