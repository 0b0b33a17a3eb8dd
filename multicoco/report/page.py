"""`multicoco report`: the page."""

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from multicoco import __version__
from multicoco.errors import UserError
from multicoco.files import may_replace, write_text
from multicoco.report.answers import make_table, read_answers
from multicoco.report.evaluated import answer_charts, interventions
from multicoco.report.examples import read_examples
from multicoco.report.folder import RunFolder, is_run, read_run
from multicoco.report.pictures import Thumbnails
from multicoco.report.rendering import page_environment
from multicoco.report.run import run_part, side_by_side
from multicoco.report.study import evaluated_runs, read_study, study_file, study_part
from multicoco.study.schema import StudyResult

_TEMPLATES = Path(__file__).parent / "templates"
NAME = "report.html"


def write_report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Writes one HTML file about runs and studies.

    Args:
        paths: run folders, folders of run folders, and studies: their folders or their study.json.
        out: None: in the folder, if it is one; else in the current one.

    Returns: the file.

    Raises:
        UserError: a path is neither run nor study, the file is no page of an earlier report, or it cannot be written.
    """
    studies = [(read_study(file), file.parent) for path in paths if (file := study_file(path))]
    runs = [read_run(folder) for path in paths if not study_file(path) for folder in _runs_at(path)]
    if out is None:
        out = (paths[0].parent if paths[0].is_file() else paths[0]) / NAME if len(paths) == 1 else Path(NAME)
    page = _render(runs, studies)
    try:
        if out.exists() and not may_replace(out, _is_report):
            raise UserError(f"{out} is there and is no report: name another file with --out, or remove it")
        write_text(out, page.encode("utf-8", "replace").decode())  # a model may write half a character
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}): name another file with --out") from error
    return out


def _is_report(content: bytes) -> bool:
    return b"MultiCoCo</title>" in content[:2000]


def _runs_at(path: Path) -> list[Path]:
    """A run folder, or those that stand in a folder."""
    if is_run(path):
        return [path]
    found = sorted(folder for folder in path.iterdir() if folder.is_dir() and is_run(folder)) if path.is_dir() else []
    if not found:
        raise UserError(f"{path} is neither the folder of a run nor that of a study, nor does it hold any runs")
    return found


def _render(runs: Sequence[RunFolder], studies: Sequence[tuple[StudyResult, Path]]) -> str:
    of_studies = [named for study, folder in studies for named in evaluated_runs(study, folder)]
    of_runs = [(run.name if len(runs) + len(studies) > 1 else "", run) for run in runs]
    own = [evaluation for name, run in of_runs for evaluation in read_answers(run, name)]
    answered = [*own, *(evaluation for name, run in of_studies for evaluation in read_answers(run, name))]
    examples = {key: example for _, run in (*of_runs, *of_studies) for key, example in read_examples(run).items()}
    table = make_table(answered, examples, Thumbnails())
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = page_environment(_TEMPLATES)
    return environment.get_template("page.html").render(
        title=", ".join([*(study.name for study, _ in studies), *(run.name for run in runs)]),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        data=_embedded(table.content),
        table=table,
        answer_charts=[*interventions(own), *answer_charts(answered, table)],  # a study has its own of its seeds
        studies=[study_part(study) for study, _ in studies],
        study_problems=[problem for _, run in of_studies for problem in run.problems],
        glance=side_by_side(runs) if len(runs) > 1 else None,
        runs=[run_part(run) for run in runs],
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )


def _embedded(content: dict[str, Any]) -> Markup:
    """JSON that no text in it can end: `<`, and what else HTML or a script takes for itself, is escaped."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    escaped: dict[str, str | int | None] = {
        "<": "\\u003c",
        ">": "\\u003e",
        "&": "\\u0026",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
    return Markup(text.translate(str.maketrans(escaped)))
