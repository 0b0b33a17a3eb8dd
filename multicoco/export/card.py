"""The model card of an exported checkpoint: what it is, what it was trained on, its scores, how it is run.

Whatever comes from a config, a model or data is escaped: text for Markdown, values in code as Python's literals.
"""

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from multicoco import __version__
from multicoco.engine.thought_weights import THOUGHTS
from multicoco.engine.weights import embedding_rows
from multicoco.evaluation.metrics import wilson_interval
from multicoco.export.checkpoint import Checkpoint
from multicoco.export.prompt import prompt_of
from multicoco.report.folder import is_run, read_run

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$])")


@dataclass(frozen=True)
class Score:
    """Attributes:
    mode: how it was asked, with what was done to the thoughts.
    interval: 95%, of the accuracy.
    chance: the accuracy of guessing; None where it is not known.
    official: scores of data sets' own evaluations, with their n.
    """

    mode: str
    accuracy: float
    interval: tuple[float, float]
    n: int
    chance: float | None
    official: dict[str, tuple[float, int]]


def model_card(checkpoint: Checkpoint, where: str, apart: bool) -> str:
    """Markdown with YAML in front, as the hub reads it.

    Args:
        where: its id on the hub, or its folder.
        apart: it is LoRA adapters for a base, and not a whole model.
    """
    config, scores, family = checkpoint.config, scores_of(checkpoint), checkpoint.reader.family
    task = "image-text-to-text" if family.sees_images else "text-generation"
    base = _hub_id((checkpoint.base if apart else None) or config.model_id)
    data_sets = [found for path in (config.train_path, config.val_path) if (found := _data_set_id(path))]
    data = ModelCardData(
        base_model=base,
        library_name="peft" if apart else "transformers",
        pipeline_tag=task,
        tags=["latent-reasoning", "multicoco", _line(config.trained_method)],
        datasets=list(dict.fromkeys(data_sets)) or None,
        model_name=_line(where.rpartition("/")[2]),
        eval_results=[_eval_result(score, task, config.val_path) for score in scores] or None,
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=escaped,
    )
    environment.filters["literal"] = lambda value: Markup(ascii(value))
    return environment.get_template("README.md.j2").render(
        front_matter=Markup(data.to_yaml()),
        where=where,
        base=base or Path(config.model_id).name,
        config=config,
        state=checkpoint.state,
        train_data=_data_name(config.train_path),
        val_data=_data_name(config.val_path),
        scores=scores,
        prompt=prompt_of(checkpoint),
        thinks=checkpoint.thinks,
        sees_images=family.sees_images,
        auto_model=Markup(family.auto_model.__name__),
        base_model=checkpoint.base if apart else None,
        base_rows=embedding_rows(checkpoint.folder),
        is_projected=(checkpoint.model / THOUGHTS).exists(),
        version=__version__,
    )


def scores_of(checkpoint: Checkpoint) -> list[Score]:
    """Of the evaluations that the run made of this checkpoint, as trained first."""
    if not is_run(checkpoint.run_dir):
        return []
    lines = [line for line in read_run(checkpoint.run_dir).metrics if line["step"] == checkpoint.state.step]
    found: dict[str, dict[str, Any]] = {}
    for key, value in ((key, value) for line in lines for key, value in line.items() if key.startswith("eval/")):
        mode, _, what = key.removeprefix("eval/").partition("/")
        found.setdefault(mode, {})[what] = value
    return [_score(mode, values) for mode, values in found.items() if values.get("n") and "accuracy" in values]


def _score(mode: str, values: dict[str, Any]) -> Score:
    accuracy, n = float(values["accuracy"]), int(values["n"])
    official = {key: (values[key], values[f"{key}_n"]) for key in values if f"{key}_n" in values}
    interval = wilson_interval(round(accuracy * n), n)
    return Score(mode, accuracy, interval, n, values.get("chance"), official)


def escaped(value: object) -> Markup:
    """Text in one line that Markdown, and HTML in it, take for text alone."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_MARKDOWN.sub(r"\\\1", _line(value)), quote=False))


def _line(value: object) -> str:
    return " ".join(str(value).split())


def _eval_result(score: Score, task: str, path: str | None) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=_data_set_id(path) or "custom",
        dataset_name=_line(_data_name(path)),
        metric_type="accuracy",
        metric_name=f"accuracy ({_line(score.mode)})",
        metric_value=score.accuracy,
        metric_args={"n": score.n, "interval_95": list(score.interval)},
    )


def _hub_id(model: str) -> str | None:
    """Of a model on the hub; None of a folder."""
    return model if HUB_ID.fullmatch(model) and not Path(model).exists() else None


def _data_set_id(path: str | None) -> str | None:
    found = re.match(r"hf://([\w.-]+/[\w.-]+)", path or "", re.ASCII)
    return found[1] if found else None


def _data_name(path: str | None) -> str:
    """Without the folders of whoever trained."""
    return "no data" if path is None else path if path.startswith("hf://") else Path(path).name
