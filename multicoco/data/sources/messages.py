"""Conversations of one question and one answer, as chat models are trained on them.

- LLaVA's and ShareGPT's: conversations: [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", "value": ...}];
- OpenAI's: messages: [{"role": "user", "content": text or parts}, {"role": "assistant", "content": ...}].

The reasoning is, of an answer: what is in `<think>`; what stands before `<answer>` or `<CONCLUSION>` (LLaVA-CoT, Xu et
al. 2024, arXiv:2411.10440); a part of type "reasoning" or "thinking"; the message's `reasoning` or
`reasoning_content`; or the record's `steps`.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from multicoco.data.example import Example, ImageSource
from multicoco.data.sources import fields
from multicoco.data.sources.source import ID_KEYS, Record, Source
from multicoco.data.sources.steps import split_reasoning
from multicoco.errors import UserError

_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_THOUGHT = re.compile(r"\s*<think(?:ing)?>(.*?)</think(?:ing)?>(.*)", re.DOTALL | re.IGNORECASE)
_CONCLUDED = re.compile(r"(.*?)<(answer|conclusion)>(.*)</\2>\s*", re.DOTALL | re.IGNORECASE)
_REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")


@dataclass
class _Turn:
    """What a message says: its text, with a mark for each image in it, the images given there, the reasoning."""

    text: str = ""
    images: list[Any] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)


class Messages(Source):
    """A system message stands in front of the question."""

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
        turns = _turns(record[given[0]], given[0])
        system = [*filter(None, [record.get("system")]), *(turn.text for turn in turns.get("system", []))]
        asked, answered = turns.get("user", []), turns.get("assistant", [])
        if len(asked) != 1 or len(answered) > 1:
            raise UserError(
                f"'{given[0]}' must be one question and one answer, found {len(asked)} of user and {len(answered)} of "
                "assistant: split the conversation into records of one each"
            )
        if asked[0].reasoning:
            raise UserError("reasoning stands in a message of user: it belongs to assistant's")
        question = "\n\n".join([*(fields.text(text, "system") for text in system), asked[0].text])
        images = self._images(record, asked[0])
        if not images and fields.IMAGE_MARK in question:
            raise UserError(f"the text has the mark {fields.IMAGE_MARK}, and the record has no image")
        question = fields.text(question, f"{given[0]} of user")
        if not answered:
            return fields.place_images(Example(record_id, question, images, (), (), None, None))
        reasoning, answer = _reasoning_and_answer(answered[0])
        if record.get("steps") is not None:
            if reasoning:
                raise UserError("'steps' and reasoning in the answer are both given: leave one of them out")
            reasoning = record["steps"]
        elif not reasoning:
            fields.refuse_other_reasoning(record, also=" and source: messages")
        steps = self._steps(reasoning)
        return fields.place_images(Example(record_id, question, images, (), steps, fields.text(answer, "answer"), None))

    def _images(self, record: Record, asked: _Turn) -> tuple[ImageSource, ...]:
        """Those of the record, in the order of the marks, or those of the message itself."""
        own = fields.images_of(record, self.image_dir)
        given = [image for image in asked.images if image is not None]
        if not given:
            return own
        if own or len(given) < len(asked.images):
            raise UserError("images are given in a message and beside the messages: leave one of them out")
        return tuple(fields.image_of(image, "image", self.image_dir) for image in given)

    def _steps(self, reasoning: Any) -> tuple[str, ...]:
        if isinstance(reasoning, str):
            return split_reasoning(fields.text(reasoning, "steps"), self.steps_from) if reasoning.strip() else ()
        return fields.texts(reasoning, "steps")


def _turns(messages: Any, name: str) -> dict[str, list[_Turn]]:
    """By role, in their order."""
    if not isinstance(messages, list):
        raise UserError(f"{name!r} must be a list of messages, found {messages!r:.60}")
    turns: dict[str, list[_Turn]] = {}
    for place, message in enumerate(messages):
        where = f"{name}[{place}]"
        if not isinstance(message, dict):
            raise UserError(f"{where!r} must be a message, found {message!r:.60}")
        said_by = message.get("role") or message.get("from")  # a table has all keys of all its messages
        role = _ROLES.get(said_by) if isinstance(said_by, str) else None
        if role is None:
            raise UserError(f"{where!r} is of {said_by!r:.60}: messages are of system, user and assistant")
        if message.get("tool_calls"):
            raise UserError(f"{where!r} calls tools, which is not supported: leave the record out")
        content = message.get("content")
        turn = _turn(message.get("value") if content is None else content, where)
        turn.reasoning += [fields.text(message[key], f"{where}.{key}") for key in _REASONING_KEYS if message.get(key)]
        turns.setdefault(role, []).append(turn)
    if (first := next((m for m in turns if m != "system"), "user")) != "user":
        raise UserError(f"'{name}' begins with a message of {first}: the question comes first")
    return turns


def _turn(content: Any, where: str) -> _Turn:
    if isinstance(content, str):
        return _Turn(content.strip())
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise UserError(f"the content of {where!r} must be a text or a list of parts, found {content!r:.60}")
    turn = _Turn()
    for part in content:
        kind = str(part.get("type")).removeprefix("input_").removeprefix("output_")
        if kind == "text":
            turn.text += fields.text(part.get("text"), f"{where}.text") + "\n"
        elif kind in ("image", "image_url"):
            value = next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key)), None)
            turn.images.append(value["url"] if isinstance(value, dict) and "url" in value else value)
            turn.text += fields.IMAGE_MARK
        elif kind in ("reasoning", "thinking", "think"):
            value = next((part[key] for key in (kind, "text", "content") if part.get(key)), None)
            turn.reasoning.append(fields.text(value, f"{where}.{kind}"))
        else:
            raise UserError(f"a part of {where!r} is of type {kind!r:.60}: there are text, image and reasoning")
    turn.text = turn.text.strip()
    return turn


def _reasoning_and_answer(turn: _Turn) -> tuple[str, str]:
    if turn.images:
        raise UserError("the answer holds an image, which is not supported")
    reasoning, answer = list(turn.reasoning), turn.text
    if thought := _THOUGHT.fullmatch(answer):
        reasoning, answer = [*reasoning, thought[1].strip()], thought[2].strip()
    if concluded := _CONCLUDED.fullmatch(answer):
        reasoning, answer = [*reasoning, concluded[1].strip()], concluded[3].strip()
    if re.search(r"</?think(?:ing)?>", answer, re.IGNORECASE):
        raise UserError("the answer has a <think> that does not end, or stands behind it, or stands twice")
    return "\n".join(filter(None, reasoning)), answer
