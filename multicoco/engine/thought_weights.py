"""What a run has trained of its thoughts beside the model, such as a projection: one more file of a saved model."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import optional_file

THOUGHTS = "thoughts.safetensors"


def save_thoughts(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Beside the model in a folder, if there is anything to save."""
    if state:
        save_file(dict(state), folder / THOUGHTS)


def load_thoughts(reasoner: LatentReasoner, source: str, trains: bool) -> None:
    """Takes the weights that lie beside a model, in a folder or on the hub.

    Args:
        trains: a run that trains may start without; then they are new.

    Raises:
        UserError: they are missing, damaged, or of another kind than the run's thoughts.
    """
    found = optional_file(source, THOUGHTS)
    module = reasoner.thought_source if isinstance(reasoner.thought_source, nn.Module) else nn.Module()
    keys = "the method, coconut.projection, coconut.norm and c_mtp.words"
    if found is None:
        if not trains and any(True for _ in module.parameters()):
            raise UserError(
                f"the thoughts of this run are projected, but {THOUGHTS} is not beside the weights of {source!r}: they "
                f"were trained without, or it was left behind. Set {keys} as in training"
            )
        return
    try:
        state = load_file(found)
    except SafetensorError as error:
        raise UserError(f"{found} is cut or damaged ({error}): take another checkpoint") from error
    shapes = {name: tensor.shape for name, tensor in state.items()}
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if shapes != expected:
        raise UserError(
            f"{found} is of thoughts that are projected otherwise than this run's: it has {_told(shapes)}, the run "
            f"{_told(expected)}. Set {keys} as they were in its training"
        )
    module.load_state_dict(state)


def _told(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items()) or "nothing"
