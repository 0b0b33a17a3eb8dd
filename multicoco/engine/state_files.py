"""DeepSpeed's files of a checkpoint: what belongs in them is collected, to be written when training has gone on."""

import copy
import pickle
import re
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.utils._pytree import tree_map

from multicoco.errors import UserError

# what the files hold beside tensors and plain data
torch.serialization.add_safe_globals([ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address])


class StateFiles(CheckpointEngine):
    """Collects what `save_checkpoint` would write, and reads for `load_checkpoint`: tensors and plain data, no code.

    Args:
        copying: collect copies, on the CPU, that training does not change; otherwise write before it goes on.

    Attributes:
        contents: what is to be written, by path.
    """

    def __init__(self, copying: bool = False):
        super().__init__()
        self.copying = copying
        self.contents: dict[Path, dict[str, Any]] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        self.contents = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """When they are written."""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        plain = tree_map(_plain, state_dict)
        self.contents[Path(path)] = _copy(plain) if self.copying else plain

    def load(self, path: str, map_location: Any = None) -> Any:
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = found[1] if found else "something"
            raise UserError(f"{path} holds {what}, which is no plain data and could run code: not loaded") from error

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True


def _plain(leaf: Any) -> Any:
    """Members of enumerations as their values: Python before 3.11.4 pickles them as a call of `getattr`."""
    return leaf.value if isinstance(leaf, Enum) else leaf


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    """On the CPU; what is one tensor under several names, as tied weights are, is copied once."""
    copies: dict[tuple[Any, ...], torch.Tensor] = {}

    def copy_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return copy.deepcopy(leaf)
        key = (leaf.data_ptr(), leaf.device, leaf.dtype, leaf.shape, leaf.stride())
        if not leaf.numel() or key not in copies:
            copies[key] = leaf.detach().to("cpu", copy=True)
        return copies[key]

    copied: dict[str, Any] = tree_map(copy_leaf, state)
    return copied
