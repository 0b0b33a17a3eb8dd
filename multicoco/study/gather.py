"""What the runs of a study that are done have left: their answers, side by side, and what they were trained on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from multicoco.config import RunConfig
from multicoco.engine.trainer_state import TrainerState, read_state
from multicoco.errors import UserError
from multicoco.study.done import is_done, last_checkpoint, seconds
from multicoco.study.samples import Evaluation, read_evaluations, shared_questions
from multicoco.study.schema import UNTOUCHED, RunResult
from multicoco.study.spec import Job, Study

_ABOUT_DATA = (
    *("max_train_samples", "on_bad_record", "max_length", "too_long"),
    *("source", "columns", "steps_from", "answer_type", "direct_answers", "max_image_tiles"),
)
_OF_ONE_START = ("host", "command", "launcher", "started")  # of what a run notes of its environment


@dataclass(frozen=True)
class Trained:
    """What must be the same for two arms of a seed to be compared.

    Attributes:
        steps, tokens, passes: of its training, with those of the arms it started from.
        examples: of all these steps; None where a checkpoint does not say how many a step has.
        peak_memory, train_seconds: bytes, and how long it took, of this arm alone.
        data: of each of these trainings, what says which examples it was trained on.
        weights: what the first of these arms started from, by its path or hub id.
        environment: revision, versions and hardware of this arm's training.
    """

    steps: int
    examples: int | None
    tokens: int
    passes: int
    peak_memory: int
    train_seconds: float
    data: frozenset[str]
    weights: str
    environment: dict[str, Any]


@dataclass(frozen=True)
class Gathered:
    """Of all runs that are done.

    Attributes:
        answers: (test set, arm, intervention) -> seed -> which questions were answered correctly; the same questions
            for all of a test set.
        trained: by arm and seed.
        refused: what could not be read, a sentence each.
    """

    runs: list[RunResult]
    answers: dict[tuple[str, str, str], dict[int, NDArray[np.bool_]]]
    trained: dict[tuple[str, int], Trained]
    refused: list[str]

    def arms(self, test: str) -> list[str]:
        return [arm for where, arm, intervention in self.answers if (where, intervention) == (test, UNTOUCHED)]


def gather(study: Study) -> Gathered:
    """Reads what is done; what is wrong with a training costs its answers, with a test set the answers on it."""
    found = Gathered([], {}, {}, [])
    done = [job for job in study.jobs if is_done(job)]
    for job in done:
        if job.test is None:
            try:
                found.trained[job.arm, job.seed] = _trained(study, job)
            except UserError as error:
                found.refused.append(f"not read: {job.name}: {error}")
    for test in study.spec.tests:
        jobs = [job for job in done if job.test == test and (job.arm, job.seed) in found.trained]
        try:
            answered = list(_answered(jobs))
            runs = [
                _run_result(job, name, evaluation, found.trained[job.arm, job.seed], study.folder)
                for job, name, evaluation, _ in answered
            ]
        except UserError as error:
            found.refused.append(f"not read: {test}: {error}")
            continue
        found.runs.extend(runs)
        for job, name, _, row in answered:
            found.answers.setdefault((test, job.arm, name), {})[job.seed] = row
    return found


def _answered(jobs: list[Job]) -> Iterator[tuple[Job, str, Evaluation, NDArray[np.bool_]]]:
    """The evaluations of one test set, each with the intervention's name and which questions it answers correctly."""
    evaluations = [(job, name, evaluation) for job in jobs for name, evaluation in _by_intervention(job).items()]
    if not evaluations:
        return
    shared = shared_questions([evaluation for *_, evaluation in evaluations], only_shared=True)
    asked: dict[int, list[str]] = {}
    for job, name, evaluation in evaluations:
        asked.setdefault(len(evaluation.samples), []).append(job.label if name == UNTOUCHED else f"{job.label} {name}")
    if asked.keys() != {len(shared.questions)}:
        counts = "; ".join(f"{n} of {', '.join(labels)}" for n, labels in asked.items())
        raise UserError(
            f"not the same questions with known answers: {len(shared.questions)} are shared, of {counts}. Remove the "
            "folders of those that were asked others, and they are asked again"
        )
    for (job, name, evaluation), row in zip(evaluations, shared.correct, strict=True):
        yield job, name, evaluation, row


def _by_intervention(job: Job) -> dict[str, Evaluation]:
    """The untouched evaluation first. Under an intervention it is the same questions, whatever was shown of them."""
    evaluations = read_evaluations(str(job.folder))
    untouched = [evaluation for evaluation in evaluations if "intervention" not in evaluation.summary]
    if len(untouched) != 1:
        raise UserError(f"{job.folder} must hold the evaluation of one method, it has {len(untouched)}: remove it")
    asked = untouched[0].samples
    found = {UNTOUCHED: untouched[0]}
    for evaluation in evaluations:
        if (name := evaluation.summary.get("intervention")) is not None:
            samples = {
                key: {**asked[key], "correct": sample["correct"]}
                for key, sample in evaluation.samples.items()
                if key in asked
            }
            found[str(name)] = replace(evaluation, samples=samples)
    return found


def _trained(study: Study, job: Job) -> Trained:
    """Of the checkpoints that were asked, and gone on from: the last ones."""
    states = [_last_state(link) for link in job.chain]
    configs = [study.config_of(link) for link in job.chain]
    examples = [state.step * state.global_batch for state in states if state.global_batch is not None]
    return Trained(
        steps=sum(state.step for state in states),
        examples=sum(examples) if len(examples) == len(states) else None,
        tokens=sum(state.tokens for state in states),
        passes=sum(state.passes for state in states),
        peak_memory=states[0].peak_memory,
        train_seconds=seconds(job.folder),
        data=frozenset(_about_data(state, config) for state, config in zip(states, configs, strict=True)),
        weights=_place(configs[-1].load_model_path or configs[-1].model_id),
        environment={key: value for key, value in states[0].versions.items() if key not in _OF_ONE_START},
    )


def _last_state(training: Job) -> TrainerState:
    checkpoint = last_checkpoint(training.folder)
    if checkpoint is None:
        raise UserError(f"{training.folder} was trained but has no checkpoint: remove it, and it is trained again")
    return read_state(checkpoint)


def _about_data(state: TrainerState, config: RunConfig) -> str:
    """The file by its content, the images by their folder, and what says which records are examples, and of what."""
    about = {key: getattr(config, key) for key in _ABOUT_DATA}
    images = _place(config.image_dir or config.data_dir)
    return json.dumps([state.data.get("train_path", "unknown"), images, about], default=str)


def _place(path: str) -> str:
    """A path as it is the same however it is written; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _run_result(job: Job, name: str, evaluation: Evaluation, trained: Trained, of_study: Path) -> RunResult:
    summary = evaluation.summary
    about = {
        "arm": job.arm,
        "seed": job.seed,
        "test": job.test,
        "intervention": name,
        "folder": job.folder.relative_to(of_study).as_posix(),
        **{key: getattr(trained, key) for key in ("steps", "tokens", "passes", "peak_memory", "train_seconds")},
        "evaluation_seconds": summary.get("seconds"),
    }
    keys = ("accuracy", "n", "ci95", "chance", "mean_new_tokens", "mean_latent_passes")
    try:
        return RunResult.model_validate({**{key: summary.get(key) for key in keys}, **about}, strict=False)
    except ValidationError as error:
        wrong = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise UserError(f"{job.folder}: its evaluation is damaged ({wrong}): remove the folder") from error
