"""From an example to token ids: the model's chat template, image tokens, choices, steps and answer.

Only the template's own text may hold control tokens: questions, choices and steps are encoded with special tokens
switched off, so "<|latent|>" or "<|im_end|>" in a question is ordinary text.
"""

from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from multicoco.curriculum import ExampleTokens
from multicoco.data.example import Example
from multicoco.errors import UserError
from multicoco.evaluation.answers import ANSWER_PREFIX

AnswerFormat = Literal["letter", "index", "text"]
Reasoning = Literal["vanilla", "cot", "coconut"]

_USER_TEXT = "\N{OBJECT REPLACEMENT CHARACTER}user-text\N{OBJECT REPLACEMENT CHARACTER}"


def choice_label(index: int, answer_format: AnswerFormat) -> str:
    """What stands for a choice: "B" (letter) or "1" (index)."""
    return chr(ord("A") + index) if answer_format == "letter" else str(index)


class PromptBuilder:
    """Tokenizes examples part by part, so that a stage can leave steps out without changing the other tokens.

    Args:
        image_token_id, image_seq_length: the model's; None for a text-only model.
        answer_format: how choices are shown and named in the answer.
        direct_instruction, reasoning_instruction: last line of the question for "vanilla", and for the other two.

    Raises:
        UserError: the model takes images but its chat template does not show one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        answer_format: AnswerFormat = "letter",
        image_token_id: int | None = None,
        image_seq_length: int | None = None,
        direct_instruction: str = "",
        reasoning_instruction: str = "",
    ):
        self.tokenizer = tokenizer
        self.answer_format = answer_format
        self.image_token_id = image_token_id
        self.image_seq_length = image_seq_length
        self.direct_instruction = direct_instruction
        self.reasoning_instruction = reasoning_instruction

    def __call__(self, example: Example, reasoning: Reasoning, n_tiles: int = 0) -> ExampleTokens:
        """Tokens of one example whose image, if any, makes n_tiles tiles.

        For "vanilla" the prompt ends with the answer's prefix: the model can do nothing but answer.
        """
        before, after = self._template(with_image=n_tiles > 0)
        prompt = [
            *self._expand_image(before, n_tiles),
            *self._encode(self._question(example, reasoning)),
            *after,
        ]
        prefix, steps = self._encode(ANSWER_PREFIX), [self._encode(f"{step}\n") for step in example.steps]
        if reasoning == "vanilla":
            prompt, prefix, steps = [*prompt, *prefix], [], []
        answer = []
        if example.answer is not None:
            answer = [*prefix, *self._encode(f" {self._answer(example)}"), self.tokenizer.eos_token_id]
        return ExampleTokens(prompt, steps, answer)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _template(self, with_image: bool) -> tuple[list[int], list[int]]:
        """The chat template's token ids before and after the user's text, up to the assistant's turn."""
        if self.tokenizer.chat_template is None:
            return [], self._encode("\n")
        text = {"type": "text", "text": _USER_TEXT}
        content = [{"type": "image"}, text] if with_image else [text] if self.image_token_id is not None else _USER_TEXT
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, after = rendered.split(_USER_TEXT)
        encode = self.tokenizer.encode
        return encode(before, add_special_tokens=False), encode(after, add_special_tokens=False)

    def _expand_image(self, ids: list[int], n_tiles: int) -> list[int]:
        """The template's one image token as <img>, tiles x image_seq_length context tokens, </img>."""
        if not n_tiles:
            return ids
        if ids.count(self.image_token_id) != 1:
            raise UserError(
                "the model's chat template does not show an image exactly once: is it an InternVL `-hf` model?"
            )
        at = ids.index(self.image_token_id)
        start, end = self.tokenizer.start_image_token_id, self.tokenizer.end_image_token_id
        return [
            *ids[:at],
            start,
            *[self.image_token_id] * (n_tiles * self.image_seq_length),
            end,
            *ids[at + 1 :],
        ]

    def _question(self, example: Example, reasoning: Reasoning) -> str:
        lines = [example.question, *self._choice_lines(example.choices)]
        instruction = self.direct_instruction if reasoning == "vanilla" else self.reasoning_instruction
        return "\n".join([*lines, instruction] if instruction else lines)

    def _choice_lines(self, choices: Sequence[str]) -> list[str]:
        if not choices:
            return []
        if self.answer_format == "text":
            return [f"The choices are {', '.join(choices)}."]
        return [f"{choice_label(i, self.answer_format)}. {choice}" for i, choice in enumerate(choices)]

    def _answer(self, example: Example) -> str:
        if example.answer_index is None or self.answer_format == "text":
            return example.answer
        return choice_label(example.answer_index, self.answer_format)
