"""LoRA (Hu et al. 2021, arXiv:2106.09685) on the language model, by peft: its own weights stay as they are, and
low-rank adapters beside its linear layers train. The rows of new tokens train too: the model has never seen them."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from multicoco.errors import UserError

_ADAPTER = "default"


def add_lora(
    model: PreTrainedModel,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    new_tokens: Sequence[int] = (),
) -> None:
    """Puts adapters into the language model and takes its own weights, head included, out of training. The rest of the
    model stays as it is.

    Args:
        rank, alpha, dropout: W x becomes W x + alpha / rank * B A dropout(x), with A (rank, in) and B (out, rank).
        target_modules: the last parts of the names of the decoder's linear layers that get one; None: all of them.
        new_tokens: ids whose rows of the embeddings and of the head are trained as well.

    Raises:
        UserError: a target module is not there, or rows of the head cannot be trained.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    own = {id(parameter) for part in (decoder, head) for parameter in part.parameters()}
    trained_elsewhere = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    name_of = {module: name for name, module in model.named_modules()}
    linear = [name_of[module] for module in decoder.modules() if isinstance(module, nn.Linear)]
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    if unknown := [name for name in target_modules or () if name not in kinds]:
        raise UserError(
            f"lora.target_modules: {model.config.model_type} has no linear layers {', '.join(unknown)} in its language "
            f"model; it has {', '.join(kinds)}"
        )
    if new_tokens and getattr(head, "bias", None) is not None:
        raise UserError(
            f"lora: the head of {model.config.model_type} has a bias, with which peft does not train single rows, as "
            "the latent tokens need: train without LoRA"
        )
    embeddings = model.get_input_embeddings()
    trained_rows = [embeddings] if head.weight is embeddings.weight else [embeddings, head]
    inject_adapter_in_model(
        LoraConfig(
            r=rank,
            lora_alpha=cast(Any, alpha),  # peft says int, and takes any number
            lora_dropout=dropout,
            target_modules=[name for name in linear if name.rpartition(".")[2] in (target_modules or kinds)],
            trainable_token_indices={name_of[m]: list(new_tokens) for m in trained_rows} if new_tokens else None,
        ),
        model,
        _ADAPTER,
    )
    for parameter in trained_elsewhere:  # peft takes everything but its adapters out of training
        parameter.requires_grad_(True)


def merge_lora(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model with adapters, as one of a model without them that computes the same.

    Sums are in fp32; only their result is rounded to the weights' own precision. Without adapters, nothing changes.
    """
    state = dict(state)
    for name, layer in model.named_modules():
        weight = f"{name}.base_layer.weight"
        if isinstance(layer, LoraLayer):
            down, up = (state.pop(f"{name}.lora_{side}.{_ADAPTER}.weight").float() for side in "AB")
            state[weight] = (state[weight].float() + layer.scaling[_ADAPTER] * up @ down).to(state[weight].dtype)
        elif isinstance(layer, TrainableTokensLayer) and weight in state:  # a tied head's may be under one name only
            rows = state.pop(f"{name}.trainable_tokens_delta.{_ADAPTER}")
            ids = torch.tensor(layer.token_indices[_ADAPTER])
            state[weight] = state[weight].index_copy(0, ids, rows.to(state[weight].dtype))
    return {name.replace(".token_adapter", "").replace(".base_layer", ""): tensor for name, tensor in state.items()}
