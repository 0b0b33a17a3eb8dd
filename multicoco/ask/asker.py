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

from multicoco.ask.attention import Seen, look
from multicoco.ask.changes import Change, read_changes
from multicoco.config import RunConfig, load_config
from multicoco.config.evaluation import EvalConfig
from multicoco.data.example import Example
from multicoco.data.sources.fields import place_images
from multicoco.engine.assembly import assemble, prompt_date
from multicoco.engine.lengths import check_prompt_lengths
from multicoco.engine.records import load_records
from multicoco.engine.weights import Weights, find_weights
from multicoco.errors import UserError
from multicoco.evaluation.asking import Answers, Asking, Respondent
from multicoco.evaluation.interventions import Interventions, Material, extended_to, thinks_itself
from multicoco.evaluation.lens import text_of
from multicoco.interventions import Intervention
from multicoco.latent.interventions import Intervened, replacement, together
from multicoco.methods import Method, method_class, stands_for
from multicoco.models.checks import position_limit
from multicoco.registry import names
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
        norms: of each thought, its Euclidean length; with words.
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
    norms: list[float] = field(default_factory=list)
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
        is_run: whether a run has left it; else it is a plain model.
        has_thoughts, can_be_changed: whether there are any in its own mode, and whether these are its own.
    """

    def __init__(self, weights: Weights, device: torch.device):
        self.config = _config(weights, device)
        self.stage = weights.state.stage if weights.state else 0
        self.checkpoint = weights.how or weights.source
        weights = replace(weights, how="")  # it is not to be said on standard output, which is for answers
        self.assembly = assemble(self.config, weights, prompt_date(self.config, weights.state), [], device)
        self.assembly.reasoner.to(device).eval()
        self.device = device
        self.is_run = weights.state is not None
        own = self.config.trained_method
        method = method_class(own)(self.config, self.assembly.backbone.latent_tokens)
        self.has_thoughts, self.can_be_changed = method.puts_thoughts, thinks_itself(method)
        self.modes = [*(mode for mode in ("vanilla", "cot") if mode != own), own]

    def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        choices: Sequence[str] = (),
        *,
        mode: str | None = None,
        latents: int | None = None,
        intervene: Sequence[str | Sequence[str]] = (),
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
                `transplant=FILE` for those of the same question about another picture; or several `only(k, ...)` that
                are done together.
            lens: also read words in the thoughts.
            streamer: transformers' own, for the tokens of the first answer.

        Raises:
            UserError: the picture cannot be read, or what is asked for is not possible with this model or question.
        """
        example = self._example(image, question, choices)
        plans = read_changes(intervene)
        changes = [change for plan in plans.values() for change in plan]
        wanted = [change.spec for change in changes if change.file is None]
        method, config = self._asked(mode, latents, [change.spec for change in changes], bool(choices), lens)
        self._check_length(config, method, example)
        asking = Asking(mode or self.modes[-1], method, self.stage, [example])
        respondent = partial(Respondent, config, self.assembly, sharded_weights=False, between_batches=lambda: None)
        tracker = Tracker(Path(), config, enabled=False)
        one = respondent([example], tracker)
        answer = self._answer(asking, respondent([example], tracker, streamer=streamer), example)
        if not plans:
            return answer
        others = self._others(config) if any(spec.fed.kind in _FROM_OTHERS for spec in wanted) else []
        everyone = [example, *others]
        config = _with_interventions(config, wanted)
        interventions = Interventions(config, method, self.stage, everyone, self.assembly.encoder)
        interventions.check()
        thoughts = respondent(everyone, tracker).ask(replace(asking, questions=everyone, thinks_only=True)).thoughts
        material = Material(interventions, thoughts, self.assembly.reasoner.decoder.config.hidden_size)
        for name, plan in plans.items():
            done = [self._do(change, asking, one, material) for change in plan]
            intervened = together([intervened for _, intervened in done])
            under = replace(asking, questions=done[0][0], intervention=plan[0].spec)
            under = replace(under, intervened=partial(_for_every_batch, intervened))
            answer.under[name] = self._answer(under, one, example)
        return answer

    def attention(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        choices: Sequence[str] = (),
        *,
        latents: int | None = None,
    ) -> list[Seen]:
        """What each thought of a question attends to; arguments and errors as of `ask`."""
        example = self._example(image, question, choices)
        method, config = self._asked(None, latents, [], bool(choices), lens=True)
        self._check_length(config, method, example)
        return look(self.assembly, Asking(self.modes[-1], method, self.stage, [example]), self.device)

    @property
    def sees_pictures(self) -> bool:
        return self.assembly.backbone.image_processor is not None

    def limit_answers(self, max_new_tokens: int) -> None:
        """Answers have no more tokens, their reasoning included, from here on."""
        generation = self.config.generation.model_copy(update={"max_new_tokens": max_new_tokens})
        self.config = self.config.model_copy(update={"generation": generation})

    def streamer(self) -> BaseStreamer | None:
        """Writes the tokens of an answer to the terminal as they come; None where beams leave that open."""
        if self.config.generation.num_beams > 1:
            return None
        return TextStreamer(self.assembly.backbone.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def _example(self, image: Picture | Sequence[Picture] | None, question: str, choices: Sequence[str]) -> Example:
        pictures = [] if image is None else [image] if isinstance(image, Picture) else [*image]
        if pictures and not self.sees_pictures:
            raise UserError("this model sees no pictures: ask without one")
        sources = tuple(map(_source, pictures))
        return place_images(Example("question", question, sources, tuple(choices), (), None, None))

    def _asked(
        self, mode: str | None, latents: int | None, wanted: Sequence[Intervention], has_choices: bool, lens: bool
    ) -> tuple[Method, RunConfig]:
        """The method that a mode stands for, and the config for this question."""
        own = self.config.trained_method
        alike = {name for name in names("methods") if stands_for(name, own)}
        if mode is not None and mode not in {*self.modes, *alike}:
            raise UserError(
                f"mode {mode}: this checkpoint was trained by {own} and is asked in {', '.join(self.modes)}"
            )
        name = own if mode is None or mode in alike else mode
        if latents is not None and latents < 0:
            raise UserError(f"latents {latents}: there cannot be fewer than 0")
        measured: dict[str, Any] = {"likelihoods": has_choices, "thoughts": lens, "thoughts_top_k": _WORDS}
        asked = EvalConfig(eval_latent_tokens=latents, **measured)
        config = _with_interventions(self.config.model_copy(update={"eval_config": asked}), wanted)
        method = method_class(name)(config, self.assembly.backbone.latent_tokens)
        if not method.puts_thoughts and (latents is not None or lens):
            raise UserError(f"mode {name} has no thoughts: leave latents and lens out, or ask in another mode")
        if method.borrows:
            raise UserError(
                f"{name} is fed the thoughts of another question of its batch, and here is one alone: evaluate it "
                "(mode: eval_only), or ask it in cot or vanilla"
            )
        if wanted and not thinks_itself(method):
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
            return list(load_records(config, config.val_path, _OTHERS))
        except UserError as error:
            raise UserError(
                f"this takes the thoughts of other questions, those of the run's val_path, and {error}: ask from the "
                "folder where the run was started, or take zero, noise or transplant=FILE"
            ) from error

    def _do(
        self, change: Change, asking: Asking, one: Respondent, material: Material
    ) -> tuple[Sequence[Example], Intervened]:
        """What is asked under a change, and what is done to its thoughts, as `Evaluator` does it to all questions."""
        questions, thought = asking.questions, dict[int, Tensor]()
        if change.file is not None:
            example = questions[0]
            file = change.file
            donor = replace(example, images=(Path(file),)) if example.images else replace(example, question=file)
            given = one.ask(replace(asking, questions=[donor], thinks_only=True)).thoughts[0]
            return questions, Intervened(replacement(change.spec, given[None].to(self.device)))
        if change.spec.fed.kind == "other_input":
            others = [material.plan.questions(change.spec.fed.variant)[0]]
            if change.spec.fed.variant == "reverse":
                questions = others
            else:
                thought = one.ask(replace(asking, questions=others, thinks_only=True)).thoughts
        return questions, material.intervened(change.spec, thought, self.device, [0])

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
            norms=_norms(answers),
            said=sample["said"],
        )

    def _words(self, answers: Answers) -> list[list[tuple[str, float]]]:
        seen = answers.seen.get(0)
        if seen is None:
            return []
        tokenizer = self.assembly.backbone.tokenizer
        return [
            [(text_of(tokenizer, token), chance) for token, chance in zip(ids, chances, strict=True)]
            for ids, chances in zip(seen.top_ids.tolist(), seen.top_probabilities.tolist(), strict=True)
        ]


def _norms(answers: Answers) -> list[float]:
    seen = answers.seen.get(0)
    return [] if seen is None else torch.linalg.vector_norm(seen.vectors.double(), dim=-1).tolist()


def _for_every_batch(intervened: Intervened, places: Sequence[int]) -> Intervened:
    return intervened


def _with_interventions(config: RunConfig, wanted: Sequence[Intervention]) -> RunConfig:
    specs = list(dict.fromkeys(map(str, wanted)))
    return config.model_copy(update={"eval_config": config.eval_config.model_copy(update={"interventions": specs})})


def _config(weights: Weights, device: torch.device) -> RunConfig:
    """The checkpoint's own, for one question after the other; of a model without one, defaults for written answers."""
    one_by_one = {"num_workers": 0, "eval_batch_size": 1, "self_check": False, "kernel": "reference"}
    if weights.state is None:
        asked: dict[str, Any] = {"eval_config": {"cot": True}, **one_by_one}
        return RunConfig(mode="eval_only", name="ask", model_id=weights.source, val_path="-", **asked)
    config = load_config(Path(weights.source).parent / "config.yaml", saved=True)
    precision = {"fp16": config.fp16 and device.type != "cpu"}
    return config.model_copy(update={"mode": "eval_only", "method": config.trained_method, **one_by_one, **precision})


def _source(picture: Picture) -> Path | bytes:
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        picture.convert("RGB").save(file, "PNG")
        return file.getvalue()
    return picture if isinstance(picture, bytes) else Path(picture)
