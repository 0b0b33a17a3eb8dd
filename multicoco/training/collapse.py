"""Stopping when a stage has collapsed: what comes after it would be trained for nothing."""

from functools import partial
from pathlib import Path

from multicoco.engine.checkpoint import Checkpoints
from multicoco.engine.ranks import agree
from multicoco.engine.trainer_state import TrainerState, age_key, all_checkpoints, read_state
from multicoco.errors import UserError
from multicoco.training.position import Position


def stop_if_collapsed(
    share: float, accuracy: float, at: Position, stage_is_over: bool, checkpoints: Checkpoints
) -> None:
    """After an evaluation that training would go on from. Collective.

    Args:
        share: of the best accuracy of the stage so far and, once it is over, of the stage before; less is a collapse.

    Raises:
        UserError: it is one; names the last checkpoint that is not. On all ranks.
    """
    known = [(at.best_accuracy, "the best of this stage"), (at.earlier_best, "the best of the stage before")]
    for best, named in known if stage_is_over else known[:1]:
        if best is not None and accuracy < share * best:
            agree(partial(_stop, share, accuracy, at, best, named, checkpoints.root), only_rank_0=True)


def _stop(share: float, accuracy: float, at: Position, best: float, named: str, root: Path) -> None:
    states = {path: read_state(path) for path in all_checkpoints(root)}
    good = [path for path, state in states.items() if _is_good(state, share * best)]
    last = max(good, key=age_key, default=None)
    way_back = "none of its good checkpoints is left"
    if last is not None:
        way_back = (
            f"the last good checkpoint is {last} (stage {states[last].stage}, accuracy {states[last].accuracy:.3f}): "
            f"start another run from it, with another seed, a lower lr or more epochs, by load_model_path={last} and "
            f"coconut.first_stage={states[last].stage}"
        )
    raise UserError(
        f"stage {at.stage} has collapsed: accuracy is {accuracy:.3f} after epoch {at.epoch}, less than {share:g} of "
        f"{best:.3f}, {named}. Training stops; {way_back}. To go on all the same, set coconut.collapse_below to null, "
        "with --allow-change coconut.collapse_below"
    )


def _is_good(state: TrainerState, least: float) -> bool:
    return state.accuracy is not None and state.accuracy >= least
