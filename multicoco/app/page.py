"""The page: a question, its answers in every mode, its thoughts, and what becomes of the answer with other thoughts."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from multicoco.app.shown import show_answers, show_changed, show_message, show_pictures, show_thoughts
from multicoco.ask.asker import Answer, Asker
from multicoco.ask.session import read_choices
from multicoco.data.example import Example
from multicoco.errors import UserError

_MOST_SWITCHES = 24  # thoughts that can be changed one by one
_AS_IT_IS = "as it is"
_FROM_PICTURE = "another picture's"
_KINDS = (_AS_IT_IS, "zero", "mean", "noise", "first", "transplant", _FROM_PICTURE)
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}


def build_page(asker: Asker, examples: Sequence[Example]) -> gr.Blocks:
    """What is on it, and what its buttons do."""
    deeds, sees = Deeds(asker, examples), asker.sees_pictures
    names = [(f"{number}. {example.question:.80}", number - 1) for number, example in enumerate(examples, start=1)]
    page = gr.Blocks(title="MultiCoCo", analytics_enabled=False)
    with page:
        gr.Markdown("# MultiCoCo")
        gr.Textbox(asker.checkpoint, label="Checkpoint", interactive=False)
        asked = gr.State([])  # the pictures that the question is about
        with gr.Row():
            with gr.Column():
                upload = gr.File(label="Picture", height=120, visible=sees, elem_id="picture")
                shown = gr.HTML(elem_id="shown")
            with gr.Column():
                example = gr.Dropdown(names, value=None, label="Examples", visible=bool(names), elem_id="example")
                question = gr.Textbox(label="Question", lines=2, elem_id="question")
                choices = gr.Textbox(label="Choices, with commas between; none: an open question", elem_id="choices")
                latents = gr.Textbox(label="How many thoughts; empty: as it was trained", elem_id="latents")
                button = gr.Button("Ask", variant="primary", elem_id="ask")
        problem, answers, thoughts = (gr.HTML(elem_id=name) for name in ("problem", "answers", "thoughts"))
        with gr.Column(visible=False) as panel:
            gr.Markdown("### What if its thoughts were others?")
            with gr.Row():
                switches = [
                    gr.Dropdown(_KINDS, value=_AS_IT_IS, label=f"thought {k}", visible=False, min_width=150)
                    for k in range(1, _MOST_SWITCHES + 1)
                ]
            other = gr.File(label="Another picture, whose thoughts to take", height=120, visible=sees, elem_id="other")
            change = gr.Button("Answer with these thoughts", elem_id="change")
            changed = gr.HTML(elem_id="changed")
        the_question = [asked, question, choices, latents]
        filled_in = [asked, shown, problem, question, choices]
        example.change(deeds.take_example, example, filled_in, **_ONE_AT_A_TIME)
        upload.change(deeds.take_upload, upload, [asked, shown, problem], **_ONE_AT_A_TIME)
        results = [problem, answers, thoughts, changed, panel, *switches]
        button.click(deeds.answer, the_question, results, **_ONE_AT_A_TIME)
        change.click(deeds.intervene, [*the_question, other, *switches], [problem, changed], **_ONE_AT_A_TIME)
    return page


class Deeds:
    """What happens when something is clicked. Whatever a user can mend is said on the page."""

    def __init__(self, asker: Asker, examples: Sequence[Example]):
        self.asker = asker
        self.examples = examples

    def take_example(self, number: int | None) -> tuple[Any, ...]:
        """Returns: pictures, how they look, what is wrong with them, question, choices."""
        if number is None:
            return tuple(gr.skip() for _ in range(5))
        example = self.examples[number]
        return [*example.images], *_look_at(example.images), example.question, write_choices(example.choices)

    def take_upload(self, file: str | None) -> tuple[Any, ...]:
        """Returns: pictures, how they look, what is wrong with them."""
        sources = [Path(file)] if file else []
        return sources, *_look_at(sources)

    def answer(self, sources: list[Any], question: str, choices: str, latents: str) -> Iterator[tuple[Any, ...]]:
        """Yields, after each mode: what is wrong, answers, thoughts, nothing changed, the panel, its switches."""
        answered: list[Answer] = []
        try:
            image, given, count = _read(sources, question, choices, latents)
            for mode in self.asker.modes:
                yield "", show_answers(answered, running=mode), "", "", *_switches(0)
                of_thoughts: dict[str, Any] = {}
                if mode == self.asker.modes[-1] and self.asker.has_thoughts:
                    of_thoughts = {"latents": count, "lens": True}
                answered.append(self.asker.ask(image, question, given, mode=mode, **of_thoughts))
            n_switches = answered[-1].thoughts if self.asker.can_be_changed else 0
            thoughts = self._thoughts(answered[-1], sources, question, given, count) if answered[-1].words else ""
            yield "", show_answers(answered), thoughts, "", *_switches(n_switches)
        except UserError as error:
            yield show_message(str(error)), show_answers(answered), "", "", *_switches(0)

    def intervene(
        self, sources: list[Any], question: str, choices: str, latents: str, other: str | None, *kinds: str
    ) -> tuple[str, str]:
        """Returns: what is wrong, the answers with other thoughts and with its own."""
        try:
            image, given, count = _read(sources, question, choices, latents)
            specs = _specs(kinds, other)
            return "", show_changed(self.asker.ask(image, question, given, latents=count, intervene=[specs]))
        except UserError as error:
            return show_message(str(error)), ""

    def _thoughts(self, answer: Answer, sources: list[Any], question: str, choices: list[str], n: int | None) -> str:
        try:
            seen = self.asker.attention(sources or None, question, choices, latents=n)
        except UserError as error:
            return show_thoughts(answer, [], sources, str(error))
        return show_thoughts(answer, seen, sources, "")


def _look_at(sources: Sequence[Any]) -> tuple[str, str]:
    """How pictures look, and what is wrong with them."""
    try:
        return (show_pictures(sources) if sources else ""), ""
    except UserError as error:
        return "", show_message(str(error))


def _read(sources: list[Any], question: str, choices: str, latents: str) -> tuple[Any, list[str], int | None]:
    if not question.strip():
        raise UserError("there is no question: write one, or choose an example")
    if latents.strip() and not latents.strip().isdecimal():
        raise UserError(f"{latents:.40} is no number of thoughts: leave it empty, or give a whole number")
    return sources or None, read_choices(choices), int(latents) if latents.strip() else None


def _switches(n: int) -> list[Any]:
    """The panel with so many switches, all as they were at first."""
    switches = [gr.update(visible=k < n, value=_AS_IT_IS) for k in range(_MOST_SWITCHES)]
    return [gr.update(visible=n > 0), *switches]


def _specs(kinds: Sequence[str], other: str | None) -> list[str]:
    """As `Asker.ask` has them, of what is switched for each thought."""
    wanted = {k: kind for k, kind in enumerate(kinds, start=1) if kind != _AS_IT_IS}
    if not wanted:
        raise UserError("no thought is to be changed: choose what is put in the place of one")
    if _FROM_PICTURE in wanted.values() and not other:
        raise UserError("there is no other picture: give the one whose thoughts to take")
    return [f"only({k}, {f'transplant={other}' if kind == _FROM_PICTURE else kind})" for k, kind in wanted.items()]


def write_choices(choices: Sequence[str]) -> str:
    """As `read_choices` reads them."""
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow(choices)
    return file.getvalue()
