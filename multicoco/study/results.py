"""What a study has found so far, and the rule's verdict on it: study.json, and the text that is printed."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, combinations, count
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from multicoco.errors import UserError
from multicoco.evaluation.report import aligned, read_text
from multicoco.files import write_json
from multicoco.study.compare import DIFFERENCE_HEADER, format_difference
from multicoco.study.gather import Gathered, gather
from multicoco.study.keys import Part
from multicoco.study.schema import UNTOUCHED, PairResult, StudyResult
from multicoco.study.spec import Study
from multicoco.study.statistics import compare_paired, holm
from multicoco.study.verdict import Answers, Evidence, format_verdict, judge


def check_folder(study: Study) -> None:
    """Before anything is launched.

    Raises:
        UserError: the study's folder is another study's, or holds a study.json that is none.
    """
    before = _written(study.results)
    if before is None or _is_of(before, study.file) or any(job.folder.exists() for job in study.jobs):
        return
    raise UserError(
        f"{study.folder} is of another study, {before.file}, with the arms {', '.join(before.arms)}, and holds no "
        "run of this one: set another name or output_dir"
    )


def write_results(study: Study) -> StudyResult:
    """Reads all runs that are done, judges them, and writes study.json into the study's folder.

    An earlier one of another study's file stays, as study.<name of that file>.json.

    Raises:
        UserError: it cannot be written.
    """
    found = gather(study)
    refused = _refused(study, found)
    pairs = [*_arm_pairs(study, found, refused), *_intervention_pairs(study, found)]
    unread = _unread(study, found)
    verdict = judge(_evidence(study, found, unread), study.spec.margin)
    notes = [*found.refused, *refused.values(), *unread.values()]
    result = StudyResult(
        name=study.spec.name,
        file=str(study.file),
        arms=list(study.spec.arms),
        spec=study.spec.model_dump(mode="json"),
        environments=_environments(found),
        runs=found.runs,
        pairs=pairs,
        refused=notes,
        verdict=asdict(verdict),
        text="\n".join([*_run_lines(study, found), "", *_pair_lines(pairs), *notes, "", format_verdict(verdict)]),
    )
    _keep_others(study)
    write_json(study.results, result.model_dump(mode="json"))
    return result


def _keep_others(study: Study) -> None:
    """Studies that share a folder, and runs, each have the last one of their file."""
    before = _written(study.results)
    _kept(study, study.file).unlink(missing_ok=True)
    if before is not None and not _is_of(before, study.file):
        study.results.replace(_kept(study, Path(before.file)))


def _kept(study: Study, file: Path) -> Path:
    """Where a file's results are while another's are study.json; files of different folders may have one name."""
    names = chain([file.stem], (f"{file.stem}-{number}" for number in count(2)))
    paths = (study.folder / f"study.{name}.json" for name in names)
    return next(path for path in paths if (there := _written(path)) is None or _is_of(there, file))


def _is_of(before: StudyResult, file: Path) -> bool:
    return Path(before.file).resolve() == file.resolve()


def _written(path: Path) -> StudyResult | None:
    """A file of results, None if it is not there.

    Raises:
        UserError: it is none.
    """
    if not path.exists():
        return None
    try:
        return StudyResult.model_validate_json(read_text(path), strict=False)
    except ValidationError as error:
        raise UserError(f"{path} is not what a study writes: move it away, or set another name") from error


def _environments(found: Gathered) -> list[dict[str, Any]]:
    """Each once."""
    different: list[dict[str, Any]] = []
    for trained in found.trained.values():
        if trained.environment not in different:
            different.append(trained.environment)
    return different


def _differences(study: Study, found: Gathered, first: str, second: str) -> dict[Part, str]:
    """In what two arms were trained differently, with any seed."""
    parts: dict[Part, str] = {}
    for seed in study.spec.seeds:
        one, other = found.trained.get((first, seed)), found.trained.get((second, seed))
        if one is None or other is None:
            continue
        if one.steps != other.steps:
            parts["steps"] = f"steps ({one.steps} and {other.steps})"
        elif None not in (one.examples, other.examples) and one.examples != other.examples:
            parts["steps"] = f"steps ({one.steps} each, of {one.examples} and {other.examples} examples in all)"
        if one.data != other.data:
            parts["data"] = "data"
        if one.weights != other.weights:
            parts["weights"] = "weights"
    return parts


def _refused(study: Study, found: Gathered) -> dict[frozenset[str], str]:
    """Pairs of arms that were trained differently although neither says that it may be."""
    problems: dict[frozenset[str], str] = {}
    for first, second in combinations(study.spec.arms, 2):
        allowed = {*study.spec.arms[first].differs, *study.spec.arms[second].differs}
        parts = {part: text for part, text in _differences(study, found, first, second).items() if part not in allowed}
        if parts:
            problems[frozenset((first, second))] = (
                f"not compared: {first} and {second} differ in their {', '.join(parts.values())}; if that is meant, "
                f"`differs: [{', '.join(parts)}]` at one of them says so"
            )
    return problems


def _unread(study: Study, found: Gathered) -> dict[str, str]:
    """Arms that the rule cannot read, which is about equal training whatever `differs` says."""
    roles = {role: arm for arm in study.spec.arms if (role := study.spec.role(arm))}
    hidden = roles.get("hidden", "")
    return {
        arm: f"not read by the rule: {arm} and {hidden} differ in their {', '.join(parts.values())}"
        for arm in roles.values()
        if (parts := _differences(study, found, arm, hidden))
    }


def _arm_pairs(study: Study, found: Gathered, refused: dict[frozenset[str], str]) -> list[PairResult]:
    compared = [
        (test, first, second, found.answers[test, first, UNTOUCHED], found.answers[test, second, UNTOUCHED])
        for test in study.spec.tests
        for first, second in combinations(found.arms(test), 2)
        if frozenset((first, second)) not in refused
    ]
    return list(_pairs("arms", compared))


def _intervention_pairs(study: Study, found: Gathered) -> list[PairResult]:
    compared = [
        (test, arm, f"{arm} under {name}", found.answers[test, arm, UNTOUCHED], answers)
        for (test, arm, name), answers in found.answers.items()
        if name != UNTOUCHED
    ]
    return list(_pairs("intervention", compared))


def _pairs(
    kind: Literal["arms", "intervention"], compared: Sequence[tuple[str, str, str, Answers, Answers]]
) -> Iterator[PairResult]:
    """One family, over the seeds that both have."""
    with_seeds = [(*pair, sorted(pair[3].keys() & pair[4].keys())) for pair in compared]
    with_seeds = [pair for pair in with_seeds if pair[5]]
    results = [
        compare_paired(np.stack([first[seed] for seed in seeds]), np.stack([second[seed] for seed in seeds]))
        for _, _, _, first, second, seeds in with_seeds
    ]
    adjusted = holm([paired.p for paired in results])
    for (test, first, second, _, _, seeds), paired, p_holm in zip(with_seeds, results, adjusted, strict=True):
        yield PairResult(
            kind=kind,
            test=test,
            first=first,
            second=second,
            difference=paired.difference,
            ci95=paired.interval,
            p=paired.p,
            p_holm=p_holm,
            n=paired.n,
            seeds=seeds,
            by_seed=list(paired.by_seed),
            p_by_seed=list(paired.p_by_seed),
            gained=list(paired.gained),
            lost=list(paired.lost),
        )


def _evidence(study: Study, found: Gathered, unread: Collection[str]) -> Evidence:
    hidden = next((arm for arm in study.spec.arms if study.spec.role(arm) == "hidden"), "")

    def by_role(test: str) -> dict[str, Answers]:
        return {
            role: found.answers[test, arm, UNTOUCHED]
            for arm in found.arms(test)
            if (role := study.spec.role(arm)) and arm not in unread
        }

    within, *_ = [test for test, spec in study.spec.tests.items() if not spec.out_of_distribution]
    beyond = [test for test, spec in study.spec.tests.items() if spec.out_of_distribution]
    interventions = {
        name: answers for (test, arm, name), answers in found.answers.items() if (test, arm) == (within, hidden)
    }
    guessing = {run.test: run.chance for run in found.runs if run.chance is not None}
    return Evidence(by_role(within), interventions, {test: by_role(test) for test in beyond}, guessing)


def _run_lines(study: Study, found: Gathered) -> list[str]:
    """A line for each test set and arm: the mean accuracy, and that of every seed."""
    rows = []
    for test, arm, name in found.answers:
        runs = [run for run in found.runs if (run.test, run.arm, run.intervention) == (test, arm, name)]
        accuracies = [run.accuracy for run in runs if run.accuracy is not None]
        chance = "" if runs[0].chance is None else f"{runs[0].chance:.3f}"
        each = " ".join(f"{accuracy:.3f}" for accuracy in accuracies)
        rows.append([test, arm, name, f"{fmean(accuracies):.3f}", each, chance, str(runs[0].n), str(runs[0].steps)])
    header = ["test set", "arm", "thoughts", "accuracy", "by seed", "guessing", "n", "steps"]
    return aligned([header, *rows])


def _pair_lines(pairs: list[PairResult]) -> list[str]:
    rows = [
        [
            *(pair.test, pair.first, pair.second),
            *format_difference(pair.difference, pair.ci95, pair.p, pair.p_holm),
            " ".join(f"{difference:+.3f}" for difference in pair.by_seed),
        ]
        for pair in pairs
    ]
    return aligned([["test set", "first", "second", *DIFFERENCE_HEADER, "by seed"], *rows])
