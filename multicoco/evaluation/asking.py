"""Asking all questions once: batched prompts over all ranks, every question counted once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import GenerationConfig
from transformers.generation import BaseStreamer

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens
from multicoco.data.collate import Collator
from multicoco.data.example import Example
from multicoco.data.loader import RankBatches, ReasoningDataset, make_loader
from multicoco.data.prompt import ANSWER_PREFIX
from multicoco.engine.assembly import Assembly
from multicoco.engine.ranks import gather, rank, world_size
from multicoco.evaluation.answers import answer_line, extract_answer, is_correct
from multicoco.evaluation.interventions import thinks_itself
from multicoco.evaluation.lens import Lens, Seen
from multicoco.evaluation.likelihood import Likelihoods, likeliest, sample_fields
from multicoco.interventions import Intervention, resize_thoughts
from multicoco.latent.generate import generate_after
from multicoco.latent.greedy import GreedyAnswers
from multicoco.latent.interventions import UNTOUCHED, Intervened
from multicoco.latent.passes import Passes
from multicoco.methods import Method
from multicoco.tracking import Tracker

Sample = dict[str, Any]


@dataclass(frozen=True)
class Asking:
    """One way to ask all questions.

    Attributes:
        questions: what the prompts are made of; they are judged as the evaluator's examples.
        intervention: None for as trained.
        intervened: what is done to the thoughts of a batch, by the places of its questions.
        thinks_only: nothing is answered, the thoughts are wanted.
    """

    mode: str
    method: Method
    stage: int
    questions: Sequence[Example]
    intervention: Intervention | None = None
    intervened: Callable[[Sequence[int]], Intervened] = lambda places: UNTOUCHED
    thinks_only: bool = False

    @property
    def name(self) -> str:
        return f"{self.mode}.{self.intervention.file_name}" if self.intervention else self.mode

    @property
    def passes(self) -> int:
        """The most that a prompt takes, on every rank."""
        passes = self.method.prompt_passes(self.stage)
        if self.intervention is None:
            return passes
        if self.intervention.kind == "extend":
            return max(passes, self.method.pass_schedule.n_passes(int(self.intervention.number)))
        return passes + (self.intervention.kind == "mask")

    def row(self, example: Example, tokens: ExampleTokens) -> tuple[list[int], list[int]]:
        """A prompt, whose labels nobody reads."""
        ids = self.method.prompt_row(tokens, self.stage)
        if self.intervention and self.method.latent_tokens:
            ids = resize_thoughts(ids, self.method.latent_tokens.latent, self.intervention)
        return ids, ids


class Answers(NamedTuple):
    """To all questions, or to those of a rank.

    Attributes:
        samples: by the question's place among the examples.
        thoughts: (K, D) likewise, of an asking without intervention if there are to be some.
        seen: what was seen in them likewise, if that is asked for and there are any.
    """

    samples: dict[int, Sample]
    thoughts: dict[int, Tensor]
    seen: dict[int, Seen]


class Respondent:
    """The model, answering.

    Args:
        assembly: what is asked, and how examples become its inputs.
        examples: by which answers are judged.
        tracker: shows the progress.
        sharded_weights, between_batches: see `Evaluator`.
        streamer: transformers' own, to which tokens go as they are generated, of batches of one.
    """

    def __init__(
        self,
        config: RunConfig,
        assembly: Assembly,
        examples: Sequence[Example],
        tracker: Tracker,
        sharded_weights: bool,
        between_batches: Callable[[], None],
        streamer: BaseStreamer | None = None,
    ):
        self.config = config
        self.backbone, self.reasoner, self.encoder = assembly.backbone, assembly.reasoner, assembly.encoder
        self.features = assembly.features
        self.examples = examples
        self.tracker = tracker
        self.sharded_weights = sharded_weights
        self.between_batches = between_batches
        self.streamer = streamer

    def ask(self, asking: Asking) -> Answers:
        """Of all questions, in their order; the same on all ranks. Collective."""
        if self.features:
            self.features.keep(asking.questions, self.between_batches)
        was_training = self.reasoner.training
        self.reasoner.eval()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.config.seed + rank())
            own = self._answer(asking)
        self.reasoner.train(was_training)
        of_all_ranks = zip(*gather(own), strict=True)
        return Answers(*(dict(sorted(chain.from_iterable(part.items() for part in of))) for of in of_all_ranks))

    def _answer(self, asking: Asking) -> Answers:
        """This rank's share."""
        method, evaluated, loader = asking.method, self.config.eval_config, self._loader(asking)
        likelihoods = None
        if evaluated.measures_likelihoods:
            likelihoods = Likelihoods(self.reasoner, self.encoder, method.asked, self.examples)
        records = bool(evaluated.interventions) and thinks_itself(method) and asking.intervention is None
        lens, speaking = self._lens(asking), self._speaking(asking)
        answers = Answers({}, {}, {})
        # what questions cost, until they are answered
        waiting: dict[int, tuple[dict[str, int], list[float] | None]] = {}

        def note(said: Mapping[int, list[int] | None]) -> None:
            for place, tokens in said.items():
                (cost, logprobs), example = waiting.pop(place), self.examples[place]
                found = _likeliest(logprobs or []) if tokens is None else self._said(example, tokens, method)
                answers.samples[place] = _sample(example, found, cost, logprobs)

        with self.tracker.progress(len(loader), f"evaluating {asking.name}") as progress:
            for batch in loader:
                self.between_batches()
                places, passes = batch["index"], self._run_passes(asking, batch)
                counted = [row for row, counts in enumerate(batch["counted"]) if counts]
                if records:
                    thoughts = passes.thoughts_by_row()
                    answers.thoughts.update((places[row], thoughts[row]) for row in counted)
                if lens:
                    read = passes.unprojected(self.reasoner.thought_source)
                    seen = lens.look(places, batch["input_ids"], passes.embeds, read)
                    answers.seen.update((places[row], seen[row]) for row in counted)
                if not asking.thinks_only:
                    examples = [self.examples[place] for place in places]
                    measured = likelihoods.measure(passes, examples) if likelihoods else None
                    for row in counted:
                        n_thoughts = method.count_thoughts(batch["input_ids"][row].tolist())
                        n_passes = method.pass_schedule.n_passes(n_thoughts) - 1
                        cost = {"latent_tokens": n_thoughts, "latent_passes": n_passes}
                        waiting[places[row]] = cost, measured[row] if measured else None
                    if evaluated.answer_by == "likelihood":
                        note({places[row]: None for row in counted})
                    elif speaking is None:
                        texts = self._generate(passes, asking)
                        note({places[row]: texts[row] for row in counted})
                    else:
                        speaking.join(passes, counted, [places[row] for row in counted])
                        while len(speaking) > self.config.eval_batch_size // 2:
                            note(speaking.step())
                progress.update()
            while speaking:
                note(speaking.step())
        return answers

    def _loader(self, asking: Asking) -> StatefulDataLoader[dict[str, Any]]:
        """Of this rank's prompts."""
        config, method = self.config, asking.method
        dataset = ReasoningDataset(
            asking.questions,
            self.encoder,
            method.asked,
            asking.row,
            draws=f"{config.seed}/evaluation",
            arrange_donor=method.donor_row if method.borrows and asking.passes > 1 else None,
        )
        pad, latent = self.backbone.tokenizer.pad_token_id, self.reasoner.latent_token_id
        collator = Collator(pad, latent, self.backbone.family.batch, True, min_length=asking.passes)
        batches = RankBatches(len(dataset), config.eval_batch_size, rank(), world_size())
        return make_loader(dataset, batches, collator, config.num_workers)

    def _run_passes(self, asking: Asking, batch: dict[str, Any]) -> Passes:
        device = self.reasoner.decoder.device
        on_host = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.reasoner.run_passes(
            **{name: tensor.to(device) for name, tensor in on_host.items()},
            on_host=on_host,
            **{name: tensor.to(device) for name, tensor in batch["inputs"].items()},
            n_passes=asking.passes,
            seeds=batch["seeds"],
            intervened=asking.intervened(batch["index"]),
        )

    def _lens(self, asking: Asking) -> Lens | None:
        """None also where no question has a thought."""
        if not self.config.eval_config.thoughts or asking.thinks_only or asking.method.latent_tokens is None:
            return None
        top_k = self.config.eval_config.thoughts_top_k
        lens = Lens(self.reasoner.model, self.encoder, asking.method, asking.row, self.examples, top_k)
        return lens if lens.most else None

    def _speaking(self, asking: Asking) -> GreedyAnswers | None:
        """For answers that need nothing of transformers' `generate`, nor ranks in step."""
        wanted, model, ends = self.config.generation, self.reasoner.model, self.backbone.end_token_ids
        if self._in_step or self.streamer or wanted.do_sample or wanted.num_beams > 1:
            return None
        return GreedyAnswers(model, wanted.max_new_tokens, ends, self._not_first(asking) or ())

    @property
    def _in_step(self) -> bool:
        return self.sharded_weights and world_size() > 1

    def _not_first(self, asking: Asking) -> list[int] | None:
        """What no answer begins with, where reasoning is to be written after the thoughts."""
        must_reason = self.config.eval_config.think_then_write is not None and asking.method.has_thoughts
        return [self.encoder.prompt.announcement[0], *self.backbone.end_token_ids] if must_reason else None

    def _generate(self, passes: Passes, asking: Asking) -> list[list[int]]:
        """By the config's `generation`, whatever the model was published with."""
        config = GenerationConfig(
            **self.config.generation.model_dump(),
            eos_token_id=self.backbone.end_token_ids,
            pad_token_id=self.backbone.tokenizer.pad_token_id,
            begin_suppress_tokens=self._not_first(asking),
        )
        tokens: list[list[int]] = generate_after(
            self.reasoner.model, passes, generation_config=config, synced_gpus=self._in_step, streamer=self.streamer
        ).tolist()
        return tokens

    def _said(self, example: Example, new_ids: list[int], method: Method) -> Sample:
        """What a response says. new_tokens counts the token that ends it, none after."""
        ends = [place for place, token in enumerate(new_ids) if token in self.backbone.end_token_ids]
        new_ids = new_ids[: ends[0] + 1] if ends else new_ids
        text = str(self.backbone.tokenizer.decode(new_ids, skip_special_tokens=True))
        response = f"{ANSWER_PREFIX} {text}" if method.asked == "answer" else text  # its prompt ends with the prefix
        ended: dict[str, Any] = {"truncated": not ends, "judge": example.judge}
        extracted = extract_answer(response, example.choices, self.config.answer_format, **ended)
        said = None if extracted is None else answer_line(response, **ended).strip()
        return {
            "generated": text,
            "said": said,
            "extracted": extracted,
            "truncated": not ends,
            "new_tokens": len(new_ids),
        }


def _sample(example: Example, said: Sample, cost: dict[str, int], measured: Sequence[float] | None) -> Sample:
    """A line of the samples file."""
    return {
        "id": example.id,
        "question": example.conversation,
        "choices": list(example.choices),
        "generated": said["generated"],
        "said": said["said"],
        "extracted": said["extracted"],
        "gold": example.answer if example.answer_index is None else example.answer_index,
        "correct": is_correct(said["extracted"], example),
        "truncated": said["truncated"],
        "new_tokens": said["new_tokens"],
        **cost,
        **({} if measured is None else sample_fields(example, measured)),
    }


def _likeliest(measured: Sequence[float]) -> Sample:
    """What is said by a question's likeliest choice, without a text."""
    return {"generated": "", "said": None, "extracted": likeliest(measured), "truncated": False, "new_tokens": 0}
