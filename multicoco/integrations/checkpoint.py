"""A checkpoint as a model that a runner of benchmarks asks: texts with pictures in them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multicoco.ask.asker import Picture, load
from multicoco.data.prompt import choice_label
from multicoco.data.sources.fields import IMAGE_MARK
from multicoco.engine.ranks import world_size
from multicoco.errors import UserError
from multicoco.evaluation.answers import extract_answer
from multicoco.methods import method_class

_CHOICE = re.compile(r"\s*\(?([A-Z])[.):]\s*(\S.*)")  # "A. red", "(A) red", "A: red"


@dataclass(frozen=True)
class Image:
    """A picture among the texts of a prompt."""

    source: Picture


@dataclass(frozen=True)
class Reply:
    """What the runner is to judge, and what it cost.

    Attributes:
        text: the answer without the reasoning before it: the letter of a choice, where the prompt has lettered ones and
            the answer names one; else the line that says it; all that was written, where no answer can be read.
        written: all of it.
        tokens: written.
        thoughts: how many there were.
    """

    text: str
    written: str
    tokens: int
    thoughts: int


class Checkpoint:
    """Answers prompts that runners have made, in one mode.

    Args:
        path: as of `multicoco.load`.
        mode: vanilla, cot, or the method with thoughts; None: the one that it was trained in.
        latents: how many thoughts; None: as many as at its stage.
        max_new_tokens: of an answer with its reasoning; None: as in the checkpoint's config. What runners ask for is
            made for answers without any.
        device: as of `multicoco.load`.

    Raises:
        UserError: there is no such checkpoint or mode, the mode has no thoughts to count, or the runner has started
            several processes.
    """

    def __init__(
        self,
        path: str | Path,
        mode: str | None = None,
        latents: int | None = None,
        max_new_tokens: int | None = None,
        device: str | None = None,
    ):
        if world_size() > 1:
            raise UserError(
                f"the runner has started {world_size()} processes, which would answer as one: start one for each GPU, "
                "each with a part of the benchmarks"
            )
        self.asker = load(path, device)
        if mode is not None and mode not in self.asker.modes:
            raise UserError(f"mode {mode}: {path} is asked in {', '.join(self.asker.modes)}")
        asked = mode or self.asker.modes[-1]
        if latents is not None and not method_class(asked).has_thoughts:
            raise UserError(
                f"latents {latents}: mode {asked} has no thoughts: leave latents out, or ask in another mode"
            )
        self.mode, self.latents = mode, latents
        if max_new_tokens is not None:
            self.asker.limit_answers(max_new_tokens)

    def reply(self, parts: Sequence[str | Image]) -> Reply:
        """Answers a prompt whose pictures stand among its texts.

        Raises:
            UserError: a picture cannot be read, or the prompt is too long for the model.
        """
        pictures = [part.source for part in parts if isinstance(part, Image)]
        marks = [part.replace(IMAGE_MARK, "[image]") if isinstance(part, str) else IMAGE_MARK for part in parts]
        prompt = "".join(marks).strip()
        answer = self.asker.ask(pictures or None, prompt, mode=self.mode, latents=self.latents)
        text = answer.text if answer.said is None else _as_letter(answer.said, lettered_choices(prompt))
        return Reply(text, answer.text, answer.tokens, answer.thoughts)


def lettered_choices(prompt: str) -> list[str]:
    """The texts of the last lines of a prompt that go A, B, C ...; [] without two of them."""
    found: list[list[str]] = [[]]
    for line in prompt.splitlines():
        match = _CHOICE.fullmatch(line)
        if match and match[1] == "A":
            found.append([match[2].strip()])
        elif match and found[-1] and match[1] == choice_label(len(found[-1]), "letter"):
            found[-1].append(match[2].strip())
    return next((choices for choices in reversed(found) if len(choices) > 1), [])


def _as_letter(said: str, choices: Sequence[str]) -> str:
    place = extract_answer(said, choices, "letter") if choices else None
    return choice_label(place, "letter") if isinstance(place, int) else said
