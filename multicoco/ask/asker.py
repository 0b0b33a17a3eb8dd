"""`multicoco.load(checkpoint).ask(image, question)`."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import TextStreamer
from transformers.generation import BaseStreamer
from transformers.utils import logging as transformers_logging

from multicoco.config import RunConfig, load_config
from multicoco.config.schema import EvalConfig
from multicoco.data.example import Example
from multicoco.data.sources.fields import place_images
from multicoco.engine.assembly import assemble, prompt_date
from multicoco.engine.lengths import check_prompt_lengths
from multicoco.engine.records import load_records
from multicoco.engine.weights import Weights, find_weights
from multicoco.errors import UserError
from multicoco.evaluation.asking import Answers, Asking, Respondent
from multicoco.evaluation.interventions import Interventions, Material, extended_to, thinks_itself
from multicoco.evaluation.lens import Seen, text_of
from multicoco.interventions import Intervention, parse
from multicoco.latent.interventions import Intervened, replacement
from multicoco.methods import Method, method_class
from multicoco.models.checks import position_limit
from multicoco.tracking import Tracker

Picture = str | Path | bytes | Image.Image

_OTHERS = 64  # questions of the run's validation data whose thoughts a mean is of, or one of which gives its own
_WORDS = 5  # read in a thought
_FROM_OTHERS = ("mean", "mean_by_step", "transplant", "other_input")


@dataclass(frozen=True)
class Answer:
    """To one question.

    Attributes:
        mode: how it was asked: vanilla, cot, or the method with thoughts.
        answer: the choice's text, or an open question's answer in plain form; None if the text gives none.
        text: what the model has written.
        tokens: written, the end of turn among them.
        thoughts: how many there were.
        seconds: it took, the thoughts included.
        truncated: whether the text ended at its limit.
        chances: of each choice, by its text, by teacher forcing; {} for open questions.
        words: of each thought, the likeliest words that the head reads in it, with their probabilities.
        under: the answers under each intervention, by its name.
        said: the line that `answer` is read from, as it is written; None if the text gives none.
    """

    mode: str
    answer: str | None
    text: str
    tokens: int
    thoughts: int
    seconds: float
    truncated: bool
    chances: dict[str, float] = field(default_factory=dict)
    words: list[list[tuple[str, float]]] = field(default_factory=list)
    under: "dict[str, Answer]" = field(default_factory=dict)
    said: str | None = None


def load(checkpoint: str | Path, device: str | None = None) -> "Asker":
    """A run folder (its best checkpoint), a checkpoint, its `model` folder, or a Hugging Face model, which is asked
    without thoughts.

    Args:
        device: such as "cuda:1"; None: a GPU if this machine has one.

    Raises:
        UserError: there is none, it is damaged, or it is of a kind that is not supported.
    """
    transformers_logging.disable_progress_bar()
    path = Path(checkpoint)
    if path.name == "model" and (path.parent / "trainer.json").exists():
        path = path.parent
    weights = find_weights(str(path) if path.exists() else str(checkpoint))
    return Asker(weights, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))


class Asker:
    """A model that is asked one question at a time. Made by `load`.

    Attributes:
        checkpoint: which one it is, and how it was chosen.
        modes: those that it can be asked in, its own last.
    """

    def __init__(self, weights: Weights, device: torch.device):
        self.config = _config(weights, device)
        self.stage = weights.state.stage if weights.state else 0
        self.checkpoint = weights.how or weights.source
        weights = replace(weights, how="")  # it is not to be said on standard output, which is for answers
        self.assembly = assemble(self.config, weights, prompt_date(self.config, weights.state), [], device)
        self.assembly.reasoner.to(device).eval()
        self.device = device
        own = self.config.trained_method
        self.modes = [*(mode for mode in ("vanilla", "cot") if mode != own), own]

    def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        choices: Sequence[str] = (),
        *,
        mode: str | None = None,
        latents: int | None = None,
        intervene: Sequence[str] = (),
        lens: bool = False,
        streamer: BaseStreamer | None = None,
    ) -> Answer:
        """Asks one question, as an evaluation would: with the checkpoint's stage, prompts and decoding.

        Args:
            image: a file, its content, an opened picture, several of them, or None. They stand in front of the
                question, or where it has the mark `<image>` for each.
            choices: their texts; without any, the question is open.
            mode: one of `modes`; None: the one it was trained in.
            latents: how many thoughts; None: as many as at its stage.
            intervene: what to do to the thoughts, each for an answer of its own: as in `eval_config.interventions`, or
                `transplant=FILE` for those of the same question about another picture.
            lens: also read words in the thoughts.
            streamer: transformers' own, for the tokens of the first answer.

        Raises:
            UserError: the picture cannot be read, or what is asked for is not possible with this model or question.
        """
        pictures = [] if image is None else [image] if isinstance(image, Picture) else [*image]
        sources = tuple(map(_source, pictures))
        example = place_images(Example("question", question, sources, tuple(choices), (), None, None))
        if example.images and self.assembly.backbone.image_processor is None:
            raise UserError("this model sees no pictures: ask without one")
        transplants, wanted = _split(intervene)
        method, config = self._asked(mode, latents, wanted, bool(transplants), bool(choices), lens)
        self._check_length(config, method, example)
        asking = Asking(mode or self.modes[-1], method, self.stage, [example])
        respondent = partial(Respondent, config, self.assembly, sharded_weights=False, between_batches=lambda: None)
        tracker = Tracker(Path(), config, enabled=False)
        one = respondent([example], tracker)
        answer = self._answer(asking, respondent([example], tracker, streamer=streamer), example)
        for file in transplants:
            donor = replace(example, images=(Path(file),)) if example.images else replace(example, question=file)
            answer.under[f"transplant={file}"] = self._answer(self._from(asking, one, donor), one, example)
        if wanted:
            others = self._others(config) if any(spec.fed.kind in _FROM_OTHERS for spec in wanted) else []
            everyone = [example, *others]
            plan = Interventions(config, method, self.stage, everyone, self.assembly.encoder)
            plan.check()
            thoughts = respondent(everyone, tracker).ask(replace(asking, questions=everyone, thinks_only=True)).thoughts
            material = Material(plan, thoughts, self.assembly.reasoner.decoder.config.hidden_size)
            for spec in wanted:
                answer.under[str(spec)] = self._answer(self._under(spec, asking, one, material), one, example)
        return answer

    def limit_answers(self, max_new_tokens: int) -> None:
        """Answers have no more tokens, their reasoning included, from here on."""
        generation = self.config.generation.model_copy(update={"max_new_tokens": max_new_tokens})
        self.config = self.config.model_copy(update={"generation": generation})

    def streamer(self) -> BaseStreamer | None:
        """Writes the tokens of an answer to the terminal as they come; None where beams leave that open."""
        if self.config.generation.num_beams > 1:
            return None
        return TextStreamer(self.assembly.backbone.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def _asked(
        self,
        mode: str | None,
        latents: int | None,
        wanted: Sequence[Intervention],
        is_transplanted: bool,
        has_choices: bool,
        lens: bool,
    ) -> tuple[Method, RunConfig]:
        """The method that a mode stands for, and the config for this question."""
        own = self.config.trained_method
        alike = {own} | ({"coconut"} if method_class(own).section == "coconut" else set())  # a control, as evaluated
        if mode is not None and mode not in {*self.modes, *alike}:
            raise UserError(
                f"mode {mode}: this checkpoint was trained by {own} and is asked in {', '.join(self.modes)}"
            )
        name = own if mode is None or mode in alike else mode
        specs = [str(spec) for spec in wanted] or (["transplant"] if is_transplanted else [])
        measured: dict[str, Any] = {"likelihoods": has_choices, "thoughts": lens, "thoughts_top_k": _WORDS}
        asked = EvalConfig(eval_latent_tokens=latents, interventions=specs, **measured)
        config = self.config.model_copy(update={"eval_config": asked})
        method = method_class(name)(config, self.assembly.backbone.latent_tokens)
        if not method.has_thoughts and (latents is not None or lens):
            raise UserError(f"mode {name} has no thoughts: leave latents and lens out, or ask in another mode")
        if method.borrows:
            raise UserError(
                f"{name} is fed the thoughts of another question of its batch, and here is one alone: evaluate it "
                "(mode: eval_only), or ask it in cot or vanilla"
            )
        if specs and not thinks_itself(method):
            raise UserError(f"mode {name} has no thoughts of its own to intervene on: leave interventions out")
        return method, config

    def _check_length(self, config: RunConfig, method: Method, example: Example) -> None:
        limit = position_limit(self.assembly.backbone.model)
        if limit is not None:
            room = (config.generation.max_new_tokens, extended_to(config))
            check_prompt_lengths(limit, [example], self.assembly.encoder, [method], [self.stage], *room)

    def _others(self, config: RunConfig) -> list[Example]:
        if config.val_path is None:
            raise UserError("this takes the thoughts of other questions, and the checkpoint's config names no val_path")
        try:
            return load_records(config, config.val_path, _OTHERS)
        except UserError as error:
            raise UserError(
                f"this takes the thoughts of other questions, those of the run's val_path, and {error}: ask from the "
                "folder where the run was started, or take zero, noise or transplant=FILE"
            ) from error

    def _from(self, asking: Asking, one: Respondent, donor: Example) -> Asking:
        """Answers with the thoughts of another question."""
        thoughts = one.ask(replace(asking, questions=[donor], thinks_only=True)).thoughts[0]
        given = thoughts[None].to(self.device)
        return _with(asking, "transplant", Intervened(replacement(parse("transplant"), given)))

    def _under(self, spec: Intervention, asking: Asking, one: Respondent, material: Material) -> Asking:
        """As `Evaluator` does it to all questions."""
        fed, questions = spec.fed, asking.questions
        thought: dict[int, Tensor] = {}
        if fed.kind == "other_input":
            changed = [material.plan.questions(fed.variant)[0]]
            if fed.variant == "reverse":
                questions = changed
            else:
                thought = one.ask(replace(asking, questions=changed, thinks_only=True)).thoughts
        asking = replace(asking, questions=questions)
        return _with(asking, str(spec), material.intervened(spec, thought, self.device, [0]))

    def _answer(self, asking: Asking, respondent: Respondent, example: Example) -> Answer:
        started = time.monotonic()
        answers = respondent.ask(asking)
        sample = answers.samples[0]
        extracted, logprobs = sample["extracted"], sample.get("choice_logprobs")
        said = example.choices[extracted] if isinstance(extracted, int) else extracted
        chances = torch.tensor(logprobs or []).softmax(-1).tolist()
        return Answer(
            mode=asking.mode,
            answer=said,
            text=sample["generated"],
            tokens=sample["new_tokens"],
            thoughts=sample["latent_tokens"],
            seconds=time.monotonic() - started,
            truncated=sample["truncated"],
            chances=dict(zip(example.choices, chances, strict=True)) if chances else {},
            words=self._words(answers),
            said=sample["said"],
        )

    def _words(self, answers: Answers) -> list[list[tuple[str, float]]]:
        seen: Seen | None = answers.seen.get(0)
        if seen is None:
            return []
        tokenizer = self.assembly.backbone.tokenizer
        return [
            [(text_of(tokenizer, token), chance) for token, chance in zip(ids, chances, strict=True)]
            for ids, chances in zip(seen.top_ids.tolist(), seen.top_probabilities.tolist(), strict=True)
        ]


def _with(asking: Asking, spec: str, intervened: Intervened) -> Asking:
    return replace(asking, intervention=parse(spec), intervened=lambda places: intervened)


def _config(weights: Weights, device: torch.device) -> RunConfig:
    """The checkpoint's own, for one question after the other; of a model without one, defaults for written answers."""
    one_by_one = {"num_workers": 0, "eval_batch_size": 1, "self_check": False, "kernel": "reference"}
    if weights.state is None:
        asked: dict[str, Any] = {"eval_config": {"cot": True}, **one_by_one}
        return RunConfig(mode="eval_only", name="ask", model_id=weights.source, val_path="-", **asked)
    config = load_config(Path(weights.source).parent / "config.yaml")
    precision = {"fp16": config.fp16 and device.type != "cpu"}
    return config.model_copy(update={"mode": "eval_only", "method": config.trained_method, **one_by_one, **precision})


def _source(picture: Picture) -> Path | bytes:
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        picture.convert("RGB").save(file, "PNG")
        return file.getvalue()
    return picture if isinstance(picture, bytes) else Path(picture)


def _split(intervene: Sequence[str]) -> tuple[list[str], list[Intervention]]:
    """The files of `transplant=FILE`, and all other interventions.

    Raises:
        UserError: one is written otherwise.
    """
    files = [spec.partition("=")[2] for spec in intervene if spec.startswith("transplant=")]
    try:
        return files, [parse(spec) for spec in intervene if not spec.startswith("transplant=")]
    except ValueError as error:
        raise UserError(str(error)) from error
