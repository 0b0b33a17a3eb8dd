"""Evaluation of a run: every method that the config asks for, as trained and under every intervention."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor

from multicoco.config import RunConfig
from multicoco.curriculum import LatentTokens
from multicoco.data.example import Example, load_image
from multicoco.data.loader import check_donors
from multicoco.engine.assembly import Assembly
from multicoco.engine.lengths import check_prompt_lengths
from multicoco.engine.ranks import rank
from multicoco.errors import UserError
from multicoco.evaluation.asking import Answers, Asking, Respondent, Sample
from multicoco.evaluation.interventions import (
    Interventions,
    Material,
    check_interventions,
    compare,
    donor_fields,
    extended_to,
    thinks_itself,
)
from multicoco.evaluation.lens import check_lens, collect, embedding_scale
from multicoco.evaluation.likelihood import summarize_likelihoods
from multicoco.evaluation.metrics import official_predictions, official_scores, summarize
from multicoco.evaluation.priors import asked_with
from multicoco.methods import Method, evaluated_methods, method_class, thinking_method
from multicoco.models.checks import position_limit
from multicoco.tracking import Tracker


class Evaluator:
    """Answers the validation questions by every method that the config asks for, by default the trained one.

    Args:
        assembly: what is asked, and how examples become its inputs.
        sharded_weights: ZeRO-3 holds the weights, so ranks must run the same number of decoding steps.
        between_batches: called before every batch, on all ranks; may raise to end the evaluation.
        about: what every summary is to say besides, such as the checkpoint.
    """

    def __init__(
        self,
        config: RunConfig,
        assembly: Assembly,
        examples: Sequence[Example],
        tracker: Tracker,
        sharded_weights: bool = False,
        between_batches: Callable[[], None] = lambda: None,
        about: dict[str, Any] | None = None,
    ):
        self.config = config
        self.backbone, self.encoder = assembly.backbone, assembly.encoder
        self.model, self.decoder = assembly.reasoner.model, assembly.reasoner.decoder
        self.examples = examples
        self.questions = asked_with(config.eval_config.inputs, examples, config.seed)
        self.tracker = tracker
        self.respondent = Respondent(config, assembly, examples, tracker, sharded_weights, between_batches)
        inputs, thoughts = config.eval_config.inputs, config.eval_config.think_then_write
        self.about = (about or {}) | ({} if inputs == "all" else {"inputs": inputs})
        self.about |= {} if thoughts is None else {"think_then_write": thoughts}
        self.methods = evaluation_methods(config, self.backbone.latent_tokens)
        if any(method.borrows for method in self.methods.values()):
            check_donors(len(examples), "val_path")
        if rank() == 0:
            self._say_what_is_unusual()

    def _say_what_is_unusual(self) -> None:
        if self.backbone.ignored_generation:
            ignored = ", ".join(f"{key} {value}" for key, value in self.backbone.ignored_generation.items())
            print(
                f"evaluating as `generation` of the run config says; the model's generation_config.json has {ignored}",
                flush=True,
            )
        asked = self.config.eval_config.asked_thoughts or 0
        for name, method in self.methods.items():
            trained = method.schedule.max_latent_stage * method.schedule.c_thought
            if method.puts_thoughts and asked > trained:
                print(
                    f"eval_config asks for {asked} thoughts, {name} is trained with at most {trained}: it has never "
                    "had so many",
                    flush=True,
                )

    def run(self, name: str, stage: int, step: int) -> float | None:
        """Evaluates at a stage and logs under a name, first as trained, then under every intervention. Collective.

        Returns: the accuracy of the trained method, or else of the first one: what checkpoints are ranked by.
        """
        accuracies: dict[str, float | None] = {}
        if self.config.eval_config.thoughts:
            self.embedding = embedding_scale(self.model, self.backbone.tokenizer)
        for mode, method in self.methods.items():
            asking = Asking(mode, method, stage, self.questions)
            started = time.time()
            answers = self.respondent.ask(asking)
            accuracies[mode] = self._log(name, asking, answers, {}, started, step)
            if thinks_itself(method) and self.config.eval_config.interventions:
                plan = Interventions(self.config, method, stage, self.examples, self.encoder)
                if plan.possible:  # a stage may be without thoughts still
                    material = Material(plan, answers.thoughts, self.decoder.config.hidden_size)
                    self._intervene(name, asking, answers.samples, material, step)
        return accuracies.get(self.config.trained_method, next(iter(accuracies.values())))

    def _intervene(
        self, name: str, untouched: Asking, untouched_samples: Mapping[int, Sample], material: Material, step: int
    ) -> None:
        """All questions again under each intervention that the stage's thoughts allow."""
        plan = material.plan
        from_other_input: Mapping[int, Tensor] = {}
        for intervention in plan.possible:
            started, fed = time.time(), intervention.fed
            questions: Sequence[Example] = self.examples
            if fed.kind == "other_input":
                questions = plan.questions(fed.variant)
            if fed.kind == "other_input" and fed.variant != "reverse":
                thinking = replace(untouched, questions=questions, thinks_only=True)
                from_other_input, questions = self.respondent.ask(thinking).thoughts, self.examples
            intervened = partial(material.intervened, intervention, from_other_input, self.decoder.device)
            asking = replace(untouched, questions=questions, intervention=intervention, intervened=intervened)
            answers = self.respondent.ask(asking)
            samples = [*answers.samples.values()]
            if fed.kind == "transplant":
                before = untouched_samples.values()
                for sample, own, example, donor in zip(samples, before, self.examples, plan.donors, strict=True):
                    if donor is not None:
                        sample |= donor_fields(example, self.examples[donor], sample["extracted"], own["extracted"])
            found = {"intervention": str(intervention), **compare(samples, [*untouched_samples.values()])}
            self._log(name, asking, answers, found, started, step)

    def _log(
        self,
        name: str,
        asking: Asking,
        answers: Answers,
        found: dict[str, Any],
        started: float,
        step: int,
    ) -> float | None:
        """Returns the accuracy."""
        samples = [*answers.samples.values()]
        summary = {"mode": asking.mode, "stage": asking.stage, **self.about, **summarize(samples)}
        if self.config.eval_config.measures_likelihoods:
            summary |= summarize_likelihoods(samples)
        summary |= official_scores(samples, self.examples)
        summary |= {**found, "seconds": time.time() - started}
        self.tracker.log_evaluation(name, asking.name, summary, samples, step, self._pictures)
        for data_set, predictions in official_predictions(samples, self.examples).items():
            self.tracker.write_predictions(name, asking.name, data_set, predictions)
        if answers.seen and rank() == 0:
            self._log_thoughts(name, asking, answers)
        accuracy: float | None = summary["accuracy"]
        return accuracy

    def _pictures(self, place: int) -> list[Image.Image]:
        return [load_image(image) for image in self.questions[place].images]

    def _log_thoughts(self, name: str, asking: Asking, answers: Answers) -> None:
        """What was seen in them; on rank 0."""
        about = {
            "mode": asking.mode,
            "stage": asking.stage,
            "intervention": None if asking.intervention is None else str(asking.intervention),
            "c_thought": asking.method.schedule.c_thought,
            **self.about,
        }
        seen, tokenizer = [*answers.seen.values()], self.backbone.tokenizer
        thoughts = collect(seen, self.examples, asking.method, self.embedding, tokenizer, about)
        self.tracker.log_thoughts(name, asking.name, thoughts.to_bytes())


def check_questions(config: RunConfig, assembly: Assembly, stages: Sequence[int], questions: Sequence[Example]) -> None:
    """What the questions do not allow of `eval_config`, and which are too long, is said before anything runs.

    Args:
        stages: all in which they are asked.

    Raises:
        UserError: as `check_interventions`, `check_lens`, `asked_with` and `check_prompt_lengths`.
    """
    methods, encoder = evaluation_methods(config, assembly.backbone.latent_tokens), assembly.encoder
    for check in (check_interventions, check_lens):
        check(config, methods, max(stages), questions, encoder)
    asked = asked_with(config.eval_config.inputs, questions, config.seed)
    if asked and (limit := position_limit(assembly.backbone.model)) is not None:
        room = (config.generation.max_new_tokens, extended_to(config))
        check_prompt_lengths(limit, asked, encoder, methods.values(), stages, *room)


def evaluation_methods(config: RunConfig, latent_tokens: LatentTokens | None) -> dict[str, Method]:
    """The methods that a run evaluates by, by their names.

    Raises:
        UserError: reasoning is to be written after some thoughts by one that has none; or one makes thoughts in another
            way than the run's `thinking_method`.
    """
    methods = {name: method_class(name)(config, latent_tokens) for name in evaluated_methods(config)}
    wanted = config.eval_config.think_then_write
    thinking = thinking_method(config)
    for name, method in methods.items():
        if wanted and method.has_thoughts and not method.puts_thoughts:
            raise UserError(
                f"eval_config.think_then_write is {wanted} but {name} puts no thoughts in the place of steps: set it "
                "to 0, after none, or leave it at null"
            )
        if method.puts_thoughts and type(method) is not thinking:
            other = next(one for one in (config.trained_method, *methods) if method_class(one) is thinking)
            raise UserError(
                f"{config.eval_config.asks_by(name)} but the run has one way to make thoughts, that of {other}: "
                f"evaluate by {name} in another run, of mode eval_only"
            )
    return methods
