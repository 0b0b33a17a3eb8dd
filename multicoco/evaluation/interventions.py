"""Interventions over all questions: who gives what to whom, what is fed to each, and what it changed."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import fmean
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from multicoco.config import RunConfig
from multicoco.data.example import Example, load_image
from multicoco.data.loader import Encoder
from multicoco.errors import UserError
from multicoco.evaluation.answers import is_correct, normalise
from multicoco.evaluation.other_inputs import other_inputs
from multicoco.interventions import Intervention, choose_donors, draw, order_of, parse
from multicoco.latent.interventions import Intervened, replacement, unit_noise
from multicoco.latent.schedule import OnePass
from multicoco.methods import Method


class Changed(Sequence[Example]):
    """Questions of which each is changed when it is asked for, by a function of its place."""

    def __init__(self, n: int, change: Callable[[int], Example]):
        self.n = n
        self.change = change

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self.change(index) if isinstance(index, int) else [self.change(i) for i in range(self.n)[index]]


def thought_counts(method: Method, stage: int, examples: Sequence[Example], encoder: Encoder) -> list[int]:
    """How many thoughts each question has."""
    # without images: they change no number of thoughts, and reading them takes time
    prompts = (encoder.prompt(example, method.asked) for example in examples)
    return [method.count_thoughts(method.prompt_row(tokens, stage)) for tokens in prompts]


class Interventions:
    """The interventions of a run on one method at one stage.

    Attributes:
        counts: how many thoughts each question has.
    """

    def __init__(self, config: RunConfig, method: Method, stage: int, examples: Sequence[Example], encoder: Encoder):
        self.wanted = [parse(spec) for spec in config.eval_config.interventions]
        self.seed = config.seed
        self.examples = examples
        self.counts = thought_counts(method, stage, examples, encoder)

    @property
    def most(self) -> int:
        return max(self.counts)

    @cached_property
    def donors(self) -> list[int | None]:
        """For transplant: another question with as many thoughts and another answer, one of the own choices if any."""
        said = [None if example.answer is None else normalise(example.answer) for example in self.examples]
        possible = {i: frozenset(map(normalise, e.choices)) for i, e in enumerate(self.examples) if e.choices}
        return choose_donors(self.seed, [example.id for example in self.examples], self.counts, said, possible)

    @cached_property
    def other_inputs(self) -> list[int | None]:
        """For other_input."""
        return other_inputs(self.seed, self.examples)

    def questions(self, variant: str) -> Sequence[Example]:
        """The questions with another's or blank images or, of those without images, the others themselves, with as many
        steps as the question has."""

        def change(index: int) -> Example:
            example = self.examples[index]
            if variant == "blank":
                return replace(example, images=tuple(_blank(image) for image in example.images))
            other = self.other_inputs[index]
            assert other is not None  # checked
            if example.images:
                return replace(example, images=self.examples[other].images)
            return replace(self.examples[other], steps=example.steps)

        return Changed(len(self.examples), change)

    @property
    def possible(self) -> list[Intervention]:
        """Those that can be done to these questions, which have fewer thoughts at an early stage than at the end."""
        return [intervention for intervention in self.wanted if self._problem(intervention) is None]

    def check(self) -> None:
        """Refuses what cannot be done to these questions.

        Raises:
            UserError: names the intervention and, where it is one, the question.
        """
        for intervention in self.wanted:
            if problem := self._problem(intervention):
                raise UserError(f"eval_config.interventions: {intervention} {problem}")

    def _problem(self, intervention: Intervention) -> str | None:
        kind, most = intervention.fed.kind, self.most
        if not most:
            return "has no thoughts to change, the questions are asked without any: leave it out"
        if intervention.first_position > most:
            needed = intervention.first_position
            return f"needs {needed} thoughts, and no question has more than {most}: lower it, or leave it out"
        if intervention.changes_nothing:
            return f"changes nothing: {intervention.fed} does not concern thought {intervention.number}. Leave it out"
        if intervention.kind == "extend" and intervention.number <= most:
            return f"adds none to {most} thoughts: raise it to more than {most}, or take cut"
        thinking = [i for i, count in enumerate(self.counts) if count]
        if kind == "transplant":
            for i in thinking:
                if self.donors[i] is None:
                    return (
                        f"finds no donor for question {self.examples[i].id!r}: no other one in the file has "
                        f"{self.counts[i]} thoughts and another answer. Leave it out, give all questions the same "
                        "number (eval_latent_tokens), or evaluate more"
                    )
        if kind in ("mean", "mean_by_step"):
            needed = most if kind == "mean_by_step" else 1
            if sum(count >= needed for count in self.counts) < 2:
                return f"needs two questions with {needed} or more thoughts: leave it out, or evaluate more"
        if kind == "other_input":
            return self._problem_of_inputs(intervention.fed.variant, thinking)
        return None

    def _problem_of_inputs(self, variant: str, thinking: Sequence[int]) -> str | None:
        for i in thinking:
            example = self.examples[i]
            if variant and not example.images:
                instead = "" if variant == "blank" else "; transplant counts what it would tell"
                return f"is about images, and question {example.id!r} has none{instead}: leave it out"
            if variant != "blank" and self.other_inputs[i] is None:
                kind = "other images" if example.images else "another text and no images"
                return f"needs, for question {example.id!r}, another one with {kind}: leave it out, or evaluate more"
        return None


class Material:
    """What is fed to each question, of the untouched thoughts of all of them.

    Args:
        thoughts: (K, D) of each question, by its place; of all that are needed.
    """

    def __init__(self, plan: Interventions, thoughts: Mapping[int, Tensor], width: int):
        self.plan = plan
        self.thoughts = thoughts
        self.width = width

    @cached_property
    def _by_step(self) -> tuple[Tensor, Tensor]:
        """(most, D) fp64 sums over all questions, in their order, and (most,) how many they are of."""
        sums = torch.zeros(self.plan.most, self.width, dtype=torch.float64)
        counts = torch.zeros(self.plan.most, dtype=torch.float64)
        for _, thoughts in sorted(self.thoughts.items()):
            sums[: len(thoughts)] += thoughts.double() if len(thoughts) else 0
            counts[: len(thoughts)] += 1
        return sums, counts

    def of(self, intervention: Intervention, index: int, from_other_input: Mapping[int, Tensor]) -> Tensor | None:
        """(K, D) for one question, as `latent.interventions.replacement` wants it.

        Args:
            from_other_input: the thoughts of the changed questions, for other_input.
        """
        fed, n = intervention.fed, self.plan.counts[index]
        kind, question = fed.kind, self.plan.examples[index].id
        if kind in ("zero", "first", "mask", "cut", "extend"):
            return None
        if kind in ("noise", "perturb"):
            return unit_noise(n, self.width, draw(self.plan.seed, question, "noise"))
        own = self.thoughts[index]
        if not n:
            return own.new_zeros(0, self.width)
        if kind == "other_input" and fed.variant != "reverse":
            return from_other_input[index]
        if kind == "permute":
            return own[order_of(n, draw(self.plan.seed, question, "permute"))]
        if kind == "swap":
            place = int(fed.number)
            order = list(range(n))
            order[place - 1 : place + 1] = reversed(order[place - 1 : place + 1])
            return own[order]
        if kind in ("mean", "mean_by_step"):
            sums, counts = (total.clone() for total in self._by_step)
            sums[:n] -= own.double()
            counts[:n] -= 1
            mean = (sums.sum(0) / counts.sum()).expand(n, -1) if kind == "mean" else sums[:n] / counts[:n, None]
            return mean.to(torch.promote_types(own.dtype, torch.float32))
        donor = self.plan.donors[index] if kind == "transplant" else index
        assert donor is not None  # checked
        return self.thoughts[donor]

    def intervened(
        self,
        intervention: Intervention,
        from_other_input: Mapping[int, Tensor],
        device: torch.device,
        places: Sequence[int],
    ) -> Intervened:
        """What is done to a batch of questions; all that it needs is on its way to the device."""
        rows = [self.of(intervention, place, from_other_input) for place in places]
        fed = [row for row in rows if row is not None]  # all of them, or none
        given = pad_sequence(fed, batch_first=True).to(device) if fed else None
        return Intervened(replacement(intervention, given), hides=intervention.kind == "mask")


def thinks_itself(method: Method) -> bool:
    """Whether each thought is the question's own and comes from a pass before it, so that it can be replaced."""
    waits = not isinstance(method.pass_schedule, OnePass)
    return method.has_thoughts and waits and not method.borrows


def check_interventions(
    config: RunConfig, methods: Mapping[str, Method], stage: int, examples: Sequence[Example], encoder: Encoder
) -> None:
    """Says what of `eval_config` the questions do not allow, before anything runs.

    Args:
        stage: the last one that is evaluated.

    Raises:
        UserError: names the key, and the question where it is one.
    """
    if config.eval_config.answer_by == "likelihood":
        for example in examples:
            if not example.choices:
                raise UserError(
                    f"eval_config.answer_by is likelihood but question {example.id!r} has no choices to choose from: "
                    "set it to generation"
                )
    if not config.eval_config.interventions:
        return
    thinking = [method for method in methods.values() if thinks_itself(method)]
    if not thinking:
        raise UserError(
            f"eval_config.interventions: {config.eval_config.interventions[0]} needs thoughts that a model "
            f"thinks itself, and {' and '.join(methods)} has none: evaluate by coconut, or leave interventions out"
        )
    for method in thinking:
        Interventions(config, method, stage, examples, encoder).check()


def extended_to(config: RunConfig) -> int:
    """The most thoughts that an `extend` asks for; 0 without one."""
    wanted = map(parse, config.eval_config.interventions)
    return max((int(one.number) for one in wanted if one.kind == "extend"), default=0)


def donor_fields(
    example: Example, donor: Example, extracted: int | str | None, untouched: int | str | None
) -> dict[str, Any]:
    """Of a transplant, for the samples file: whose thoughts, and whether the answer is the donor's, with these and with
    its own thoughts; None where that is none of the question's choices.

    Args:
        extracted, untouched: the question's answer, and the one as trained.
    """
    places = [i for i, choice in enumerate(example.choices) if normalise(choice) == normalise(str(donor.answer))]
    as_donor = replace(example, answer=donor.answer, answer_index=places[0] if places else None, direct_answers=())
    says = [is_correct(said, as_donor) if places or not example.choices else None for said in (extracted, untouched)]
    about = {"donor": donor.id, "donor_answer": donor.answer}
    return about | {"says_donor_answer": says[0], "untouched_says_donor_answer": says[1]}


def compare(samples: Sequence[dict[str, Any]], untouched: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What an intervention changed: the same questions, in the same order, with and without it."""
    pairs = [(a, b) for a, b in zip(samples, untouched, strict=True) if a["correct"] is not None]
    logprobs = [
        a["gold_logprob"] - b["gold_logprob"]
        for a, b in zip(samples, untouched, strict=True)
        if a["gold_logprob"] is not None
    ]
    found: dict[str, Any] = {
        "untouched_accuracy": fmean(b["correct"] for _, b in pairs) if pairs else None,
        "difference": fmean(a["correct"] - b["correct"] for a, b in pairs) if pairs else None,
        "n_right_to_wrong": sum(b["correct"] and not a["correct"] for a, b in pairs),
        "n_wrong_to_right": sum(a["correct"] and not b["correct"] for a, b in pairs),
        "n_changed": sum(a["extracted"] != b["extracted"] for a, b in zip(samples, untouched, strict=True)),
        "gold_logprob_difference": fmean(logprobs) if logprobs else None,
    }
    if any("donor" in sample for sample in samples):
        told = [sample for sample in samples if sample.get("says_donor_answer") is not None]
        may_flip = [sample for sample in told if not sample["untouched_says_donor_answer"]]
        found["n_donor_answer_untouched"] = len(told) - len(may_flip)
        found["n_donor_answer_possible"] = len(may_flip)
        found["n_to_donor_answer"] = sum(sample["says_donor_answer"] for sample in may_flip)
    return found


def _blank(image: Any) -> bytes:
    """A picture of the same size that is grey all over."""
    file = io.BytesIO()
    Image.new("RGB", load_image(image).size, (127, 127, 127)).save(file, "PNG")
    return file.getvalue()
