"""The run config: YAML files that inherit from each other, validated by a schema.

    config = load_config("args/aokvqa_cot.yaml", ["lr=1e-5"])

The names are imported on first use: the schema asks the training methods for their keys, and these make theirs of
`multicoco.config.section`. No torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multicoco.config.errors import check_keys, nearest
    from multicoco.config.load import load_config
    from multicoco.config.reference import config_reference
    from multicoco.config.schema import RunConfig
    from multicoco.config.section import Section
    from multicoco.config.tracking import Wandb

_HOMES = {
    "RunConfig": "schema",
    "Section": "section",
    "Wandb": "tracking",
    "check_keys": "errors",
    "config_reference": "reference",
    "load_config": "load",
    "nearest": "errors",
}
__all__ = ["RunConfig", "Section", "Wandb", "check_keys", "config_reference", "load_config", "nearest"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"multicoco.config.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'multicoco.config' has no attribute {name!r}")
