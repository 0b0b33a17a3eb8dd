"""Checkpoints in lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval, 0.7) as the model `multicoco`: docs/integrations.md.

    lmms-eval --model multicoco --model_args pretrained=runs/my_coconut,mode=coconut --tasks mmstar

It finds the model by the entry point `lmms_eval.models` of this package.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from multicoco.errors import UserError
from multicoco.integrations.checkpoint import Checkpoint, Image


class MultiCoCo(lmms):
    """One question at a time, greedy unless the checkpoint's `generation` says otherwise.

    Args:
        pretrained, mode, latents, max_new_tokens, device: see `Checkpoint`.
        batch_size, max_batch_size: lmms-eval's own; questions are asked one by one.
    """

    is_simple = False  # prompts come as messages, with images in their places

    def __init__(
        self,
        pretrained: str,
        mode: str | None = None,
        latents: int | None = None,
        max_new_tokens: int | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.checkpoint = Checkpoint(pretrained, mode, latents, max_new_tokens, device)

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answers; stop words, length and temperature that a task asks for are of answers without reasoning, and left
        aside."""
        return [self._answer(request) for request in tqdm(requests, desc="answering")]

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        raise UserError("this task compares likelihoods of choices, which multicoco leaves to its own evaluation")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        raise UserError("this task is a conversation of several turns, and multicoco answers single questions")

    def _answer(self, request: Instance) -> GenerationResult:
        context, messages_of, settings, place, task, split = request.args
        reply = self.checkpoint.reply(_parts(messages_of(self.task_dict[task][split][place])))
        self.cache_hook.add_partial("generate_until", (context, settings), reply.text)
        return GenerationResult(reply.text, TokenCounts(output_tokens=reply.tokens))


def _parts(messages: Sequence[dict[str, Any]]) -> list[str | Image]:
    """What is said, and the system's word in front of it."""
    parts: list[str | Image] = []
    for message in messages:
        if message["role"] == "assistant":
            raise UserError(
                "this task shows answered examples, and multicoco answers single questions: --num_fewshot 0"
            )
        content = message["content"]
        for item in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if item["type"] not in ("text", "image"):
                raise UserError(f"this task shows a {item['type']}, and multicoco sees texts and images")
            parts.append(item["text"] if item["type"] == "text" else Image(item["url"]))
        if message["role"] == "system":
            parts.append("\n")
    return parts
