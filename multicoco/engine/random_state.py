"""The state of a process's random number generators: torch's, Python's, numpy's, and its GPU's."""

import random
from typing import Any, cast

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Tensors and plain data, which `torch.load` takes with weights_only."""
    _, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # a dict only with legacy=False
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": (keys.tolist(), *rest)}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
