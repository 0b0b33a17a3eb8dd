"""MultiCoCo: training vision-language models to reason in continuous latent space, on DeepSpeed.

The public names are imported on first use, so that commands answer before torch and transformers are loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multicoco.ask.asker import load
    from multicoco.config import RunConfig, load_config
    from multicoco.curriculum import StageSchedule, layout
    from multicoco.latent.reasoner import LatentReasoner

__version__ = "0.1.0"

_PUBLIC = {
    "LatentReasoner": "multicoco.latent.reasoner",
    "RunConfig": "multicoco.config",
    "StageSchedule": "multicoco.curriculum",
    "layout": "multicoco.curriculum",
    "load": "multicoco.ask.asker",
    "load_config": "multicoco.config",
}
__all__ = ["LatentReasoner", "RunConfig", "StageSchedule", "layout", "load", "load_config"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'multicoco' has no attribute {name!r}")
