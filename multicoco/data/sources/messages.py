"""Conversations, as chat models are trained on them: the last answer is the example's, the rest is context.

- LLaVA's and ShareGPT's: conversations: [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", "value": ...}];
- OpenAI's: messages: [{"role": "user", "content": text or parts}, {"role": "assistant", "content": ...}].

The reasoning is, of an answer: what is in `<think>`, or before `</think>` where a chat template has written that; what
stands before `<answer>` or `<CONCLUSION>` (LLaVA-CoT, Xu et al. 2024, arXiv:2411.10440); a part of type "reasoning" or
"thinking"; the message's `reasoning` or `reasoning_content`; or the record's `steps`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from multicoco.data.example import Example, ImageSource, Turn
from multicoco.data.sources import fields
from multicoco.data.sources.source import ID_KEYS, Record, Source
from multicoco.data.sources.steps import split_reasoning
from multicoco.errors import UserError

_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
# chat templates of reasoning models write the mark at the beginning themselves
_THOUGHT = re.compile(r"(?:\s*<think(?:ing)?>)?(.*?)</think(?:ing)?>(.*)", re.DOTALL | re.IGNORECASE)
_THINK_MARK = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_CONCLUDED = re.compile(r"(.*?)<(answer|conclusion)>(.*)</\2>\s*", re.DOTALL | re.IGNORECASE)
_REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")


@dataclass
class _Said:
    """Messages of one side, one after the other: their text, with a mark for each image in it, the images given there,
    the reasoning."""

    by: str
    text: str = ""
    images: list[Any] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)


class Messages(Source):
    """A system message stands in front of the question that follows it."""

    keys = frozenset({*ID_KEYS, "conversations", "messages", "image", "images", "system", "steps"})

    @classmethod
    def matches(cls, record: Record) -> bool:
        """By its list of messages."""
        given = (record.get(key) for key in ("conversations", "messages"))
        return "question" not in record and any(isinstance(value, list) for value in given)

    def parse(self, record: Record, record_id: str) -> Example:
        """See `Source.parse`."""
        given = [key for key in ("conversations", "messages") if record.get(key) is not None]
        if len(given) != 1:
            raise UserError("there must be either 'messages' or 'conversations'")
        sides = _sides(record[given[0]], given[0])
        asked, answered = sides[::2], sides[1::2]
        if record.get("system"):
            asked[0].text = f"{fields.text(record['system'], 'system')}\n\n{asked[0].text}"
        images = self._images(record, asked)
        if not images and any(fields.IMAGE_MARK in one.text for one in asked):
            raise UserError(f"the text has the mark {fields.IMAGE_MARK}, and the record has no image")
        questions = [fields.text(one.text, f"{given[0]} of user") for one in asked]
        said = [_reasoning_and_answer(one) for one in answered]
        answers = [fields.text(answer, "answer") for _, answer in said]
        earlier = tuple(map(Turn, questions[:-1], answers))
        steps: tuple[str, ...] = ()
        answer = None
        if len(answers) == len(questions):
            steps, answer = self._steps(record, said[-1][0]), answers[-1]
        return fields.place_images(Example(record_id, questions[-1], images, (), steps, answer, None, earlier=earlier))

    def _images(self, record: Record, asked: Sequence[_Said]) -> tuple[ImageSource, ...]:
        """Those of the record, in the order of the marks, or those of the messages themselves."""
        own = fields.images_of(record, self.image_dir)
        shown = [image for one in asked for image in one.images]
        given = [image for image in shown if image is not None]
        if not given:
            return own
        if own or len(given) < len(shown):
            raise UserError("images are given in a message and beside the messages: leave one of them out")
        return tuple(fields.image_of(image, "image", self.image_dir) for image in given)

    def _steps(self, record: Record, reasoning: Any) -> tuple[str, ...]:
        """Of the reasoning in the answer, or of the record's own."""
        if record.get("steps") is not None:
            if reasoning:
                raise UserError("'steps' and reasoning in the answer are both given: leave one of them out")
            reasoning = record["steps"]
        elif not reasoning:
            fields.refuse_other_reasoning(record, also=" and source: messages")
        if isinstance(reasoning, str):
            return split_reasoning(fields.text(reasoning, "steps"), self.steps_from) if reasoning.strip() else ()
        return fields.texts(reasoning, "steps")


def _sides(messages: Any, name: str) -> list[_Said]:
    """Of user and assistant in turn, the user first; a system message is a part of the question that follows it."""
    if not isinstance(messages, list):
        raise UserError(f"{name!r} must be a list of messages, found {messages!r:.60}")
    sides: list[_Said] = []
    for place, message in enumerate(messages):
        said = _message(message, f"{name}[{place}]")
        if sides and (sides[-1].by == "assistant") == (said.by == "assistant"):
            said = _together(sides.pop(), said)
        sides.append(said)
    if not any(one.by == "user" for one in sides):
        raise UserError(f"{name!r} has no message of user")
    if sides[0].by == "assistant":
        raise UserError(f"{name!r} begins with a message of assistant: the question comes first")
    if any(one.by == "system" for one in sides):
        raise UserError(f"{name!r} has a message of system with no question behind it")
    return sides


def _message(message: Any, where: str) -> _Said:
    if not isinstance(message, dict):
        raise UserError(f"{where!r} must be a message, found {message!r:.60}")
    said_by = message.get("role") or message.get("from")  # a table has all keys of all its messages
    role = _ROLES.get(said_by) if isinstance(said_by, str) else None
    if role is None:
        raise UserError(f"{where!r} is of {said_by!r:.60}: messages are of system, user and assistant")
    if message.get("tool_calls"):
        raise UserError(f"{where!r} calls tools, which is not supported: leave the record out")
    content = message.get("content")
    said = _said(role, message.get("value") if content is None else content, where)
    said.reasoning += [fields.text(message[key], f"{where}.{key}") for key in _REASONING_KEYS if message.get(key)]
    if said.reasoning and role != "assistant":
        raise UserError(f"reasoning stands in a message of {role}: it belongs to assistant's")
    return said


def _together(first: _Said, second: _Said) -> _Said:
    return _Said(
        by=first.by if second.by == "system" else second.by,
        text="\n\n".join(filter(None, (first.text, second.text))),
        images=first.images + second.images,
        reasoning=first.reasoning + second.reasoning,
    )


def _said(by: str, content: Any, where: str) -> _Said:
    if isinstance(content, str):
        return _Said(by, content.strip())
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise UserError(f"the content of {where!r} must be a text or a list of parts, found {content!r:.60}")
    said = _Said(by)
    for part in content:
        kind = str(part.get("type")).removeprefix("input_").removeprefix("output_")
        if kind == "text":
            text = part.get("text")
            said.text += "" if isinstance(text, str) and not text.strip() else fields.text(text, f"{where}.text") + "\n"
        elif kind in ("image", "image_url"):
            value = next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key)), None)
            said.images.append(value["url"] if isinstance(value, dict) and "url" in value else value)
            said.text += fields.IMAGE_MARK
        elif kind in ("reasoning", "thinking", "think"):
            value = next((part[key] for key in (kind, "text", "content") if part.get(key)), None)
            said.reasoning.append(fields.text(value, f"{where}.{kind}"))
        else:
            raise UserError(f"a part of {where!r} is of type {kind!r:.60}: there are text, image and reasoning")
    said.text = said.text.strip()
    return said


def _reasoning_and_answer(said: _Said) -> tuple[str, str]:
    if said.images:
        raise UserError("the answer holds an image, which is not supported")
    reasoning, answer, thought = list(said.reasoning), said.text, ""
    if marked := _THOUGHT.fullmatch(answer):
        thought, answer = marked[1].strip(), marked[2].strip()
        reasoning.append(thought)
    if concluded := _CONCLUDED.fullmatch(answer):
        reasoning, answer = [*reasoning, concluded[1].strip()], concluded[3].strip()
    if _THINK_MARK.search(f"{thought}\n{answer}"):
        raise UserError("the answer has a <think> that does not end, or stands behind it, or stands twice")
    return "\n".join(filter(None, reasoning)), answer
