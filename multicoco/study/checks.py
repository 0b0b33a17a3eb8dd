"""What would end a run of a study, or give it nothing to say, found before the first one is started."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.example import Example
from multicoco.data.sources import load_of_run
from multicoco.data.sources.location import Location, locate
from multicoco.data.sources.mixture import read_parts
from multicoco.errors import UserError
from multicoco.evaluation.evaluator import evaluation_methods
from multicoco.evaluation.interventions import check_interventions
from multicoco.methods import method_class
from multicoco.study.done import is_done
from multicoco.study.spec import Job, Study

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def check_runs(study: Study, jobs: Sequence[Job]) -> None:
    """Looks at what the jobs that are not done need.

    Raises:
        UserError: files that are not there, and interventions that cannot be made on an arm's thoughts or with a test
            set's questions; all of them.
    """
    of_all_seeds = {(job.arm, job.test): job for job in jobs if not is_done(job)}
    problems = [problem for job in of_all_seeds.values() for problem in _problems(study, job)]
    if problems:
        raise UserError("\n  ".join([f"{study.file}: nothing was started:", *dict.fromkeys(problems)]))


def _problems(study: Study, job: Job) -> Iterator[str]:
    config = study.config_of(job)
    missing = [*_missing_models(config, job), *_missing_records(config, job)]
    if not Path(config.deepspeed).exists():
        missing.append(f"deepspeed: there is no {config.deepspeed}")
    yield from (f"arms.{job.arm}{'' if job.test is None else f' on tests.{job.test}'}: {text}" for text in missing)
    if missing or job.start is None or not config.eval_config.interventions or job.test is None:
        return
    try:
        _check_interventions(config, study.config_of(job.start))
    except UserError as error:
        yield f"arms.{job.arm} on tests.{job.test}, with interventions: {error}"


def _missing_models(config: RunConfig, job: Job) -> Iterator[str]:
    """Local ones; what may be an id of the Hugging Face hub is left to its client."""
    models = {"model_id": config.model_id} | ({} if job.start else {"load_model_path": config.load_model_path})
    for key, model in models.items():
        if model is None or Path(model).exists():
            continue
        folder, *below = Path(model).parts
        if not _HUB_ID.fullmatch(model) or (below and Path(folder).is_dir()):
            yield f"{key}: there is no {model}"


def _missing_records(config: RunConfig, job: Job) -> Iterator[str]:
    if not Path(config.data_dir).is_dir():
        yield f"data_dir: there is no folder {config.data_dir}"
        return
    for key in ("train_path", "val_path") if job.test is None else ("val_path",):
        path = getattr(config, key)
        try:
            places = [] if path is None else _places(locate(config.data_dir, path))
            yield from (f"{key}: there is no {place}" for place in places if not place.on_hub and not place.files)
        except UserError as error:
            yield f"{key}: {error}"


def _places(location: Location) -> list[Location]:
    """Those that a mixture lists, else the one."""
    if not location.is_mixture:
        return [location]
    return [part.location(Path(location.place).parent) for part in read_parts(location)]


def _check_interventions(config: RunConfig, trained: RunConfig) -> None:
    """As the evaluation will, of the last stage that the training comes to. Where the thoughts stand in a prompt is a
    matter of the steps' number, not of any word: no tokenizer is needed."""

    def without_words(example: Example, asked: str) -> ExampleTokens:
        return ExampleTokens([], [[] for _ in example.steps] if asked == "reasoning" else [])

    encoder: Any = SimpleNamespace(prompt=without_words)
    last_stage = max(method_class(trained.trained_method)(trained).schedule.reachable(trained.num_epochs))
    examples = load_of_run(config, str(config.val_path), config.max_val_samples, verify_images=False)
    methods = evaluation_methods(config, LatentTokens(1, 2, 3))
    check_interventions(config, methods, last_stage, examples, encoder)
