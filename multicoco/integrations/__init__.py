"""Checkpoints in other people's runners of benchmarks, an adapter each; a runner is installed by who uses it.

checkpoint.py  what every runner asks: a text with pictures in it, answered in one of the checkpoint's modes
lmms_eval.py   lmms-eval
vlmevalkit.py  VLMEvalKit
"""

from typing import Any


def lmms_eval_model() -> Any:
    """How lmms-eval is told of the model `multicoco`, by the entry point of this package."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("multicoco", chat_class_path=f"{__name__}.lmms_eval.MultiCoCo")
