"""The words of a model: the latent tokens, and the rows of embeddings and head beyond the tokenizer."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multicoco.curriculum import LatentTokens
from multicoco.errors import UserError
from multicoco.models.backbone import Backbone
from multicoco.models.generation import suppress_unknown_rows

LATENT_TOKENS = ("<|start-latent|>", "<|latent|>", "<|end-latent|>")

_ROW_MULTIPLE = 64  # matrices of other sizes are slow on tensor cores


def add_latent_tokens(backbone: Backbone, init_token: str | None = None, n_rows: int | None = None) -> None:
    """Adds the latent tokens, each initialised from a known token's embedding (input and output side).

    Embeddings that are large enough already keep their size: InternVL's and Qwen's are padded beyond the tokenizer.
    Others grow, to a multiple of 64. Rows past the tokenizer are never generated, and start as the mean of the known
    ones: a mean of V logits is at most log(mean(exp(logits))), so n of them raise no loss by more than log(1 + n / V).
    A model that has the tokens already is left alone.

    Args:
        init_token: the known token; the end-of-text token by default.
        n_rows: how many rows there are to be where there are too few: those of a checkpoint to go on from.

    Raises:
        UserError: init_token is not one token of the vocabulary, only some latent tokens exist, or they have no rows.
    """
    tokenizer, model = backbone.tokenizer, backbone.model
    vocabulary = tokenizer.get_vocab()
    present = LATENT_TOKENS[0] in vocabulary
    init_token = init_token or tokenizer.eos_token
    if not present and init_token not in vocabulary:
        raise UserError(f"coconut.latent_init_token: {init_token!r} is not a token of the model's vocabulary")
    latent = add_latent_words(tokenizer)
    ids = latent.block(1)
    before = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if not present and max(ids) >= before:
        rows = n_rows or -(-(max(ids) + 1) // _ROW_MULTIPLE) * _ROW_MULTIPLE
        model.resize_token_embeddings(rows, mean_resizing=False)
        known = sorted(
            token for token in vocabulary.values() if token < before
        )  # else in another order in each process
        _set_rows(model, range(before, rows), known)
    if max(ids) >= (rows := cast(nn.Embedding, model.get_input_embeddings()).num_embeddings):
        raise UserError(f"the latent tokens are {ids}, but {model.config.model_type}'s embeddings have {rows} rows")
    if not present:
        _set_rows(model, ids, [vocabulary[init_token]])
    backbone.latent_tokens = latent
    suppress_unknown_rows(model, tokenizer)


def add_latent_words(tokenizer: PreTrainedTokenizerBase) -> LatentTokens:
    """The ids of the latent tokens, which a tokenizer gets unless it has them.

    Raises:
        UserError: it has some of them.
    """
    present = [token for token in LATENT_TOKENS if token in tokenizer.get_vocab()]
    if len(present) not in (0, len(LATENT_TOKENS)):
        raise UserError(
            f"the tokenizer has {present} but not all of {list(LATENT_TOKENS)}: it is not a MultiCoCo checkpoint"
        )
    if not present:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(LATENT_TOKENS)}, replace_extra_special_tokens=False
        )
    return LatentTokens(*cast(list[int], tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS))))  # of a list, a list


@torch.no_grad()
def _set_rows(model: PreTrainedModel, rows: Iterable[int], sources: Sequence[int]) -> None:
    """Gives rows of the embeddings and of the head, its bias included, the mean of other rows."""

    def set_in(table: Tensor) -> None:
        table[list(rows)] = table[sources].float().mean(0).to(table.dtype)

    sides: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    for module in sides:
        set_in(module.weight)
        if getattr(module, "bias", None) is not None:
            set_in(module.bias)
