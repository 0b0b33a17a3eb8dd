"""Which weights `load_model_path` means."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from multicoco.engine.manifest import damage
from multicoco.engine.ranks import agree
from multicoco.engine.trainer_state import TrainerState, age_key, all_checkpoints, rank_key, read_state
from multicoco.errors import UserError


@dataclass(frozen=True)
class Weights:
    """What to load.

    Attributes:
        source: for transformers: a folder, a file, or a hub id.
        how: how it was chosen, for the log and the summaries.
        state, config: of the checkpoint that the weights are of; None if they are of none.
    """

    source: str
    how: str
    state: TrainerState | None = None
    config: dict[str, Any] | None = None


def find_weights(load_model_path: str) -> Weights:
    """What to load for `load_model_path`. Collective.

    A run folder gives its best checkpoint: of its last stage, since accuracies of different stages do not compare, by
    accuracy, or the latest where none was evaluated. A folder in which just one run folder stands is that one; a
    checkpoint folder gives its weights; anything else is left to transformers (a Hugging Face directory or a hub id).

    Raises:
        UserError: the weights are damaged, or several runs stand in the folder.
    """
    chosen, how = agree(lambda: choose(Path(load_model_path)), only_rank_0=True)
    if chosen is None:
        return Weights(load_model_path, load_model_path)
    if problems := damage(chosen, below="model/"):
        raise UserError(f"the weights of {how} are damaged: {'; '.join(problems)}; load another checkpoint")
    state = agree(lambda: read_state(chosen), only_rank_0=True)
    config = agree(lambda: _read_config(chosen / "config.yaml"), only_rank_0=True)
    return Weights(str(chosen / "model"), f"{how} (stage {state.stage}, epoch {state.epoch})", state, config)


def embedding_rows(checkpoint: Path) -> int | None:
    """Of a checkpoint's model, by its config.json; None where that does not tell."""
    config = _read_json(checkpoint / "model" / "config.json")
    rows = (config.get("text_config") or config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # damage is found, and named, when the checkpoint is loaded
        return {}
    return content if isinstance(content, dict) else {}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def choose(path: Path) -> tuple[Path | None, str]:
    """The checkpoint that a folder means, if it means one, and how it was chosen, as `find_weights` says.

    Raises:
        UserError: a checkpoint's state cannot be read, or several runs stand in the folder.
    """
    if (path / "trainer.json").exists():
        return path, f"checkpoint {path}"
    states = {checkpoint: read_state(checkpoint) for checkpoint in all_checkpoints(path / "checkpoints")}
    if not states:
        return _choose_run_below(path)
    last_stage = max(state.stage for state in states.values())
    of_it = {checkpoint: state for checkpoint, state in states.items() if state.stage == last_stage}
    evaluated = [checkpoint for checkpoint in of_it if of_it[checkpoint].accuracy is not None]
    best = max(evaluated, key=lambda checkpoint: rank_key(of_it[checkpoint]), default=None)
    chosen, why = (best, "best") if best else (max(of_it, key=age_key), "latest")
    return chosen, f"{why} checkpoint of {path}: {chosen.name}"


def _choose_run_below(path: Path) -> tuple[Path | None, str]:
    """`output_dir: checkpoints/aokvqa_cot` makes checkpoints/aokvqa_cot/NAME; people name the folder above."""
    if (path / "config.json").exists() or not path.is_dir():
        return None, str(path)
    runs = sorted(run for run in path.iterdir() if all_checkpoints(run / "checkpoints"))
    if len(runs) > 1:
        names = ", ".join(str(run) for run in runs)
        raise UserError(f"load_model_path: {path} holds several runs: name one of {names}")
    return choose(runs[0]) if runs else (None, str(path))
