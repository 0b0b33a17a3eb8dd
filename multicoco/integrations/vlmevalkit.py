"""Checkpoints in VLMEvalKit (github.com/open-compass/VLMEvalKit): docs/integrations.md.

    python -m multicoco.integrations.vlmevalkit VLMEvalKit/run.py --checkpoint runs/my_coconut --modes cot coconut \
        --data MMStar BLINK --judge exact_matching

makes each mode a model of VLMEvalKit's, named as the checkpoint and the mode, and starts its run.py with all that is
not named here.
"""

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import vlmeval.config
import vlmeval.vlm
from vlmeval.vlm.base import BaseModel

from multicoco.errors import UserError
from multicoco.integrations.checkpoint import Checkpoint, Image
from multicoco.methods import method_class


class MultiCoCo(BaseModel):
    """One question at a time, greedy unless the checkpoint's `generation` says otherwise.

    Args:
        checkpoint, mode, latents, max_new_tokens, device: see `Checkpoint`.
        use_vllm: what VLMEvalKit gives to models with names such as "Qwen2.5-VL", whatever their class.
    """

    INTERLEAVE = True

    def __init__(
        self,
        checkpoint: str,
        mode: str | None = None,
        latents: int | None = None,
        max_new_tokens: int | None = None,
        device: str | None = None,
        use_vllm: bool = False,
    ):
        super().__init__()
        if use_vllm:
            raise UserError("--use-vllm: vLLM does not run thoughts: leave it out")
        self.checkpoint = Checkpoint(checkpoint, mode, latents, max_new_tokens, device)

    def generate_inner(self, message: Sequence[dict[str, Any]], dataset: str | None = None) -> str:
        """Answers a message of texts and images."""
        if others := {part["type"] for part in message} - {"text", "image"}:
            raise UserError(f"{dataset} shows a {', '.join(others)}, and multicoco sees texts and images")
        parts = [part["value"] if part["type"] == "text" else Image(part["value"]) for part in message]
        return self.checkpoint.reply(parts).text


def register(checkpoint: str, modes: Sequence[str], latents: int | None = None, **settings: Any) -> list[str]:
    """Makes modes of a checkpoint models of VLMEvalKit's.

    Args:
        latents: of those modes that have thoughts.
        settings: further ones of `MultiCoCo`.

    Returns: their names, by which VLMEvalKit keeps results: a checkpoint's with that of its run, and with the number of
    latents that is asked for.
    """
    vlmeval.vlm.MultiCoCo = MultiCoCo  # where VLMEvalKit looks for the class that a JSON config names
    path, names = Path(checkpoint).resolve(), []
    model = f"{path.parents[1].name}-{path.name}" if path.parent.name == "checkpoints" else path.name
    for mode in modes:
        own = latents if method_class(mode).has_thoughts else None
        names.append(f"{model}-{mode}" if own is None else f"{model}-{mode}-{own}_latents")
        vlmeval.config.supported_VLM[names[-1]] = partial(MultiCoCo, checkpoint, mode, own, **settings)
    return names


def main() -> None:
    """Starts VLMEvalKit's run.py, in which the models are known."""
    parser = argparse.ArgumentParser(prog="python -m multicoco.integrations.vlmevalkit", description=main.__doc__)
    parser.add_argument("run", type=Path, help="run.py of a checkout of VLMEvalKit")
    parser.add_argument("--checkpoint", required=True, help="run folder, checkpoint, or Hugging Face model")
    parser.add_argument("--modes", nargs="+", required=True, metavar="MODE", help="vanilla, cot, coconut")
    parser.add_argument(
        "--latents", type=int, help="thoughts, in modes that have any (default: as at the checkpoint's stage)"
    )
    parser.add_argument("--max-new-tokens", type=int, help="of an answer with its reasoning (default: as trained)")
    parser.add_argument("--device", help="such as cuda:1 (default: a GPU if there is one)")
    own, theirs = parser.parse_known_args()
    settings = {"latents": own.latents, "max_new_tokens": own.max_new_tokens, "device": own.device}
    names = register(
        os.path.abspath(own.checkpoint) if os.path.exists(own.checkpoint) else own.checkpoint, own.modes, **settings
    )
    sys.argv = [str(own.run), *theirs, "--model", *names]
    runpy.run_path(str(own.run), run_name="__main__")


if __name__ == "__main__":
    main()
