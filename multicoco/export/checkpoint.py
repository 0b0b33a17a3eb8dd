"""The checkpoint that is exported: what it holds, and whether plain transformers can run what it was trained for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multicoco.config import RunConfig, load_config
from multicoco.curriculum import LatentTokens
from multicoco.engine.manifest import damage
from multicoco.engine.trainer_state import TrainerState
from multicoco.engine.weights import find_weights
from multicoco.errors import UserError
from multicoco.latent.schedule import OnePass, Sequential
from multicoco.latent.thoughts import hidden_state
from multicoco.methods import Method, method_class
from multicoco.models.lora import ADAPTER_FILES
from multicoco.models.reader import Reader, load_reader
from multicoco.models.vocabulary import LATENT_TOKENS, add_latent_words


@dataclass(frozen=True)
class Checkpoint:
    """Attributes:
    folder: of the checkpoint; below it, `model`.
    config: of its run.
    reader: the tokenizer and what else there is beside the weights.
    method: that trained it, and that it is asked by.
    latent_tokens: None where it has no thoughts.
    thinks: whether its thoughts come from passes, and not from their tokens.
    """

    folder: Path
    state: TrainerState
    config: RunConfig
    reader: Reader
    method: Method
    latent_tokens: LatentTokens | None
    thinks: bool

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def adapter(self) -> Path:
        """What was trained with LoRA, apart from its base."""
        return self.folder / "adapter"

    @property
    def base(self) -> str | None:
        """What the adapter is of, a folder or hub id; None where there is no adapter apart."""
        if not self.adapter.is_dir():
            return None
        return str(json.loads((self.adapter / ADAPTER_FILES[0]).read_text())["base_model_name_or_path"])

    @property
    def run_dir(self) -> Path:
        return self.folder.parent.parent


def read_checkpoint(path: str) -> Checkpoint:
    """A run folder (its best checkpoint), a checkpoint, or its `model` folder.

    Raises:
        UserError: it is none, it is damaged, or its thoughts are of a kind that only MultiCoCo runs.
    """
    given = Path(path)
    weights = find_weights(str(given.parent if given.name == "model" else given))
    if weights.state is None:
        raise UserError(f"{path} is no checkpoint of a run: name a run folder, or one of its checkpoints")
    folder = Path(weights.source).parent
    if problems := damage(folder, below="adapter/"):
        raise UserError(f"the adapter of {folder} is damaged: {'; '.join(problems)}; export another checkpoint")
    config = load_config(folder / "config.yaml", saved=True)
    reader = load_reader(weights.source, config.max_image_tiles, config.trust_remote_code)
    kind = method_class(config.trained_method)
    latent_tokens = None
    if kind.has_thoughts:
        if LATENT_TOKENS[0] not in reader.tokenizer.get_vocab():
            raise UserError(f"{weights.source}: its tokenizer has no {LATENT_TOKENS[0]}: take another checkpoint")
        latent_tokens = add_latent_words(reader.tokenizer)
    method = kind(config, latent_tokens)
    thinks = _thinks(method, reader)
    return Checkpoint(folder, weights.state, config, reader, method, latent_tokens, thinks)


def _thinks(method: Method, reader: Reader) -> bool:
    """Whether thoughts come from passes.

    Raises:
        UserError: of a kind that only MultiCoCo runs.
    """
    if not method.has_thoughts:
        return False
    if isinstance(method.pass_schedule, OnePass):
        with torch.device("meta"):  # its parts are asked for, not its weights
            model: Any = reader.family.auto_model.from_config(reader.config)
        if method.fixed_thoughts(model) is None:
            return False
    elif method.thought_source() is hidden_state and isinstance(method.pass_schedule, Sequential):
        return True
    raise UserError(
        f"{method.config.trained_method}: its thoughts are not its own last hidden states one after the other "
        "(docs/controls.md, docs/methods.md), which is all that plain transformers make: evaluate it with MultiCoCo "
        "(mode: eval_only)"
    )
