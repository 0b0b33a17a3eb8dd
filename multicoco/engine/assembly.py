"""What a run works with, made from its config: the examples, the model and what turns one into inputs of the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import strftime

import torch
from torch import Tensor

from multicoco.config import RunConfig
from multicoco.curriculum import layout
from multicoco.data.example import Example
from multicoco.data.loader import Encoder
from multicoco.data.prompt import prompts_of_run
from multicoco.engine.features import Features
from multicoco.engine.ranks import agree, rank
from multicoco.engine.thought_weights import load_thoughts
from multicoco.engine.trainer_state import TrainerState
from multicoco.engine.weights import Weights, find_weights
from multicoco.errors import UserError
from multicoco.latent.exactness import require_exact
from multicoco.latent.kinds import score_cap
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.self_check import self_check
from multicoco.methods import thinking_method
from multicoco.methods.thinking import thinking_model
from multicoco.models.authors import load_authors_weights
from multicoco.models.backbone import Backbone, load_backbone
from multicoco.models.freezing import freeze
from multicoco.models.lora import add_lora, add_token_rows
from multicoco.models.reader import Reader
from multicoco.models.vocabulary import add_latent_tokens
from multicoco_kernels import implementation

SHORT_AND_LONG = 64  # examples that are looked at for a short and a long one


@dataclass(frozen=True)
class Assembly:
    """A model that is ready to be trained or asked, and an encoder of examples for it.

    Attributes:
        features: what is kept of images, if it is; to be called once the weights are loaded.
    """

    backbone: Backbone
    reasoner: LatentReasoner
    encoder: Encoder
    features: Features | None = None


def weights_of(config: RunConfig) -> Weights:
    """The weights that the run starts from. Collective."""
    return find_weights(config.load_model_path) if config.load_model_path else Weights(config.model_id, "")


def prompt_date(config: RunConfig, *states: TrainerState | None) -> str:
    """The date that prompts are written with: the config's, else the first one that a checkpoint has, else today's."""
    known = [state.prompt_date for state in states if state is not None and state.prompt_date]
    return agree(lambda: config.prompt_date or (known or [strftime("%Y-%m-%d")])[0], only_rank_0=True)


def assemble(
    config: RunConfig,
    weights: Weights,
    date: str,
    examples: Sequence[Example],
    device: torch.device,
    n_rows: int | None = None,
) -> Assembly:
    """Loads the model and prepares it for the config's method; before ZeRO shards it. Collective.

    Args:
        date: as of `prompt_date`.
        examples: on two of which the latent passes are compared with the model's own forward.
        device: that the model is to be on, later.
        n_rows: of the embeddings, should they have to grow: those of the checkpoint that is gone on from.

    Raises:
        UserError: the model cannot be loaded, or is of a kind that latent passes do not reproduce; on all ranks.
    """
    backbone, reasoner = agree(lambda: _load(config, weights, device, n_rows))
    encoder = encoder_of(config, backbone, date)
    if config.self_check:
        agree(lambda: _compare(config, reasoner, examples, encoder), only_rank_0=True)
    features = agree(lambda: Features(config, backbone, reasoner, encoder)) if config.features else None
    return Assembly(backbone, reasoner, encoder, features)


def model_dtype(config: RunConfig) -> torch.dtype:
    """Of the parameters."""
    return torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else torch.float32


def encoder_of(config: RunConfig, reader: Backbone | Reader, date: str) -> Encoder:
    """An encoder of examples as the run's config wants them to be asked."""
    prompt = prompts_of_run(config, reader.tokenizer, reader.family, date)
    return Encoder(prompt, partial(reader.family.read_images, image_processor=reader.image_processor))


def _compare(config: RunConfig, reasoner: LatentReasoner, examples: Sequence[Example], encoder: Encoder) -> None:
    """The passes with the model's own forward; of a kind of model that no test does, with thoughts first."""
    rows = short_and_long(examples, encoder, config.max_length)
    if not reasoner.family.is_proven:
        require_exact(reasoner.model, reasoner.kernel, rows[-1], trains=config.mode != "eval_only")
    self_check(reasoner, rows)


def short_and_long(examples: Sequence[Example], encoder: Encoder, max_length: int | None) -> list[dict[str, Tensor]]:
    """Two of the first examples with all that is written of them, as batches of one row; the long one last, and only if
    it is not too long to be trained on."""
    first = examples[:SHORT_AND_LONG]
    rows: list[dict[str, Tensor]] = []
    for example in dict.fromkeys([min(first, key=_size), max(first, key=_size)]):
        tokens, inputs = encoder(example, "reasoning")
        input_ids = torch.tensor([layout(tokens, n_replaced=0, latent_block=())[0]])
        if not rows or input_ids.shape[1] <= (max_length or math.inf):
            rows.append({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **inputs})
    return rows


def _size(example: Example) -> tuple[int, int]:
    return len(example.images), len(example.conversation) + sum(map(len, (*example.choices, *example.steps)))


def _load(
    config: RunConfig, weights: Weights, device: torch.device, n_rows: int | None
) -> tuple[Backbone, LatentReasoner]:
    try:
        implementation(config.kernel, device)
    except ValueError as error:
        raise UserError(str(error)) from error
    if weights.how and rank() == 0:
        print(f"weights: {weights.how}", flush=True)
    thinking = thinking_method(config)
    init_token = thinking(config).latent_init_token if thinking else None
    authors_file = Path(weights.source) if Path(weights.source).is_file() else None
    source = config.model_id if authors_file else weights.source
    backbone = load_backbone(source, model_dtype(config), config.max_image_tiles, config.trust_remote_code)
    if rank() == 0 and score_cap(backbone.model.config) is not None:
        print("kernel: reference, the only one that knows of the model's caps on scores; it is slower", flush=True)
    if authors_file:
        load_authors_weights(backbone, authors_file, init_token)
        backbone.base = None
    if thinking:
        add_latent_tokens(backbone, init_token, n_rows)
    latent = backbone.latent_tokens
    if config.mode != "eval_only":
        if config.lora.rank:
            add_lora(backbone.model, **config.lora.model_dump(), new_tokens=latent.block(1) if latent else ())
        elif isinstance(config.lr, dict) and "new_tokens" in config.lr and latent:
            add_token_rows(backbone.model, latent.block(1))
        freeze(backbone.model, **config.freeze.model_dump())
    try:
        if thinking and latent:
            method, trains = thinking(config, latent), config.mode != "eval_only"
            reasoner = thinking_model(method, backbone.model, latent.latent, config.kernel, trains, config.cuda_graphs)
        else:
            reasoner = LatentReasoner(backbone.model, None, config.kernel)
    except ValueError as error:
        raise UserError(f"model {source!r}: {error}") from error
    if reasoner.latent_token_id is not None:
        folder = str(authors_file.parent) if authors_file else weights.source
        load_thoughts(reasoner, folder, trains=config.mode != "eval_only")
    return backbone, reasoner
