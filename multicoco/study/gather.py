"""What the runs of a study that are done have left: their answers, side by side, and what they were trained on."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from multicoco.engine.trainer_state import age_key, all_checkpoints, read_state
from multicoco.errors import UserError
from multicoco.study.runner import is_done, seconds
from multicoco.study.samples import Evaluation, read_evaluations, shared_questions
from multicoco.study.schema import UNTOUCHED, RunResult
from multicoco.study.spec import Job, Study

_OF_ONE_START = ("host", "command", "started")  # of what a run notes of its environment


@dataclass(frozen=True)
class Trained:
    """What must be the same for two arms of a seed to be compared.

    Attributes:
        steps, tokens, passes: of its training, with those of the arms it started from.
        peak_memory: bytes, of this arm alone.
        data: SHA-256 of all training files.
        weights: what the first of these arms started from.
        environment: revision, versions and hardware of this arm's training.
    """

    steps: int
    tokens: int
    passes: int
    peak_memory: int
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
    """

    runs: list[RunResult]
    answers: dict[tuple[str, str, str], dict[int, NDArray[np.bool_]]]
    trained: dict[tuple[str, int], Trained]

    def arms(self, test: str) -> list[str]:
        return [arm for where, arm, intervention in self.answers if (where, intervention) == (test, UNTOUCHED)]


def gather(study: Study) -> Gathered:
    """Reads what is done.

    Raises:
        UserError: a file of a run is damaged, or the runs of a test set were asked different questions.
    """
    found = Gathered([], {}, {})
    for test in study.spec.tests:
        done = [job for job in study.jobs if job.test == test and is_done(job.folder)]
        evaluations = {(job, name): evaluation for job in done for name, evaluation in _by_intervention(job).items()}
        if not evaluations:
            continue
        correct = shared_questions(list(evaluations.values())).correct
        for ((job, name), evaluation), row in zip(evaluations.items(), correct, strict=True):
            trained = found.trained.setdefault((job.arm, job.seed), _trained(study, job.arm, job.seed))
            found.answers.setdefault((test, job.arm, name), {})[job.seed] = row
            found.runs.append(_run_result(study, job, name, evaluation, trained))
    return found


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


def _trained(study: Study, arm: str, seed: int) -> Trained:
    states = []
    for name in study.chain(arm):
        folder = study.training_folder(name, seed)
        checkpoints = sorted(all_checkpoints(folder / "checkpoints"), key=age_key)
        if not checkpoints:
            raise UserError(f"{folder} was trained but has no checkpoint: remove it, and it is trained again")
        states.append(read_state(checkpoints[-1]))
    first = study.training_config(study.chain(arm)[-1])
    return Trained(
        sum(state.step for state in states),
        sum(state.tokens for state in states),
        sum(state.passes for state in states),
        states[0].peak_memory,
        frozenset(state.data.get("train_path", "unknown") for state in states),
        first.load_model_path or first.model_id,
        {key: value for key, value in states[0].versions.items() if key not in _OF_ONE_START},
    )


def _run_result(study: Study, job: Job, name: str, evaluation: Evaluation, trained: Trained) -> RunResult:
    summary = evaluation.summary
    about = {
        "arm": job.arm,
        "seed": job.seed,
        "test": job.test,
        "intervention": name,
        **{key: getattr(trained, key) for key in ("steps", "tokens", "passes", "peak_memory")},
        "train_seconds": seconds(study.training_folder(job.arm, job.seed)),
        "evaluation_seconds": summary.get("seconds"),
    }
    keys = ("accuracy", "n", "ci95", "chance", "mean_new_tokens", "mean_latent_passes")
    try:
        return RunResult.model_validate({**{key: summary.get(key) for key in keys}, **about}, strict=False)
    except ValidationError as error:
        wrong = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise UserError(f"{job.folder}: its evaluation is damaged ({wrong}): remove the folder") from error
