"""What would end a run of a study, or give it nothing to say, found before the first one is started."""

import re
from collections.abc import Iterator, Sequence
from itertools import product
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
from multicoco.evaluation.interventions import check_interventions, thinks_itself
from multicoco.methods import method_class
from multicoco.study.done import is_done
from multicoco.study.spec import WATCHING, Job, Study

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_TOKENS = LatentTokens(1, 2, 3)  # numbers are asked for, not words

_THINKS, _BORROWS = "thinks thoughts of its own", "is fed another question's thoughts"
_WAITS, _DROPS = "is fed what is no thought", "has neither thoughts nor the steps"
_WRITES, _ANSWERS = "writes its steps", "answers at once"
_DOES = {
    **{"hidden": _THINKS, "borrowed": _BORROWS, "pause": _WAITS},
    **{"no_thoughts": _DROPS, "cot": _WRITES, "direct": _ANSWERS},
}
"""Role -> what the reading rule takes its model to do."""


def check_runs(study: Study, jobs: Sequence[Job]) -> None:
    """Looks at what the jobs that are not done need.

    Raises:
        UserError: arms that are not what their role says, test sets that show nothing, files that are not there, and
            interventions that cannot be made on an arm's thoughts or with a test set's questions; all of them.
    """
    problems = [*_problems_of_roles(study), *_problems_of_tests(study)]
    found: dict[str, list[str]] = {}  # what is missing from many runs is said once
    for job in {(job.arm, job.test): job for job in jobs if not is_done(job)}.values():
        for where, problem in _problems(study, job):
            found.setdefault(problem, []).append(where)
    for problem, (where, *more) in found.items():
        problems.append(f"{where}: {problem}" + (f" (and so for {len(more)} more)" if more else ""))
    if problems:
        raise UserError("\n  ".join([f"{study.file}: nothing was started:", *dict.fromkeys(problems)]))


def _problems_of_roles(study: Study) -> Iterator[str]:
    """A control whose own keys have been forgotten would be read as one."""
    for training in _trainings(study):
        role, does = study.spec.role(training.arm), _does(study.config_of(training))
        if role is not None and does != _DOES[role]:
            yield (
                f"arms.{training.arm}: its role is {role}, whose model {_DOES[role]}, but this one {does}: change what "
                "it sets, or its role (without one, its name counts)"
            )


def _does(config: RunConfig) -> str:
    """What a model that is trained so does at its last stage, as in _DOES."""
    method = method_class(config.trained_method)(config, _TOKENS)
    last_stage = max(method.schedule.reachable(config.num_epochs))
    if method.count_thoughts(method.prompt_row(ExampleTokens([], [[]]), last_stage)):
        return _BORROWS if method.borrows else _THINKS if thinks_itself(method) else _WAITS
    if method.asked == "answer":
        return _ANSWERS
    return _DROPS if method.has_thoughts else _WRITES


def _problems_of_tests(study: Study) -> Iterator[str]:
    """The rule must not read answers to what an arm is trained on, nor the same ones as in and out of distribution."""
    within = [test for test, spec in study.spec.tests.items() if not spec.out_of_distribution]
    beyond = [test for test in study.spec.tests if test not in within]
    for training in _trainings(study):
        configs = {job.test: study.config_of(job) for job in study.jobs if job.test and job.start is training}
        trained_on = _places_of(study.config_of(training), "train_path")
        for test in (within[0], *beyond):
            if _places_of(configs[test], "val_path") == trained_on:
                yield (
                    f"tests.{test}: asks what {training.arm} is trained on, {trained_on[0]}: name other questions; "
                    "what was trained on may be asked by a further test set in distribution"
                )
        for test, other in product(beyond, within):
            if _asks(configs[test]) == _asks(configs[other]):
                yield f"tests.{test}: is out of distribution, and asks the same as tests.{other}, which is not"


def _trainings(study: Study) -> list[Job]:
    """One of every arm."""
    return [job for job in study.jobs if job.test is None and job.seed == study.spec.seeds[0]]


def _places_of(config: RunConfig, key: str) -> tuple[Path, Path]:
    """Of records and of their images."""
    records = Path(config.data_dir, str(getattr(config, key)))
    return records.resolve(), Path(config.image_dir or config.data_dir).resolve()


def _asks(config: RunConfig) -> dict[str, Any]:
    """What is asked, and how."""
    places = {"data_dir", "image_dir", "val_path"}
    return config.model_dump(exclude=WATCHING | places) | {"places": _places_of(config, "val_path")}


def _problems(study: Study, job: Job) -> Iterator[tuple[str, str]]:
    """Where, and what."""
    config, where = study.config_of(job), f"arms.{job.arm}{'' if job.test is None else f' on tests.{job.test}'}"
    missing = [*_missing_models(config, job), *_missing_records(config, job)]
    if not Path(config.deepspeed).exists():
        missing.append(f"deepspeed: there is no {config.deepspeed}")
    yield from ((where, text) for text in missing)
    if missing or job.start is None or not config.eval_config.interventions or job.test is None:
        return
    try:
        _check_interventions(config, study.config_of(job.start))
    except UserError as error:
        yield f"{where}, with interventions", str(error)


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
    methods = evaluation_methods(config, _TOKENS)
    check_interventions(config, methods, last_stage, examples, encoder)
