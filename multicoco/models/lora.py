"""LoRA (Hu et al. 2021, arXiv:2106.09685) on the language model, by peft: its own weights stay as they are, and
low-rank adapters beside its linear layers train. The rows of new tokens train too: the model has never seen them."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import TrainableTokensWrapper, set_additional_trainable_modules
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from multicoco.errors import UserError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_ADAPTER = "default"
_OF_PEFT = ("lora_", "trainable_tokens_delta")  # in the names of its own parameters
_IN_PEFT = "base_model.model."  # in front of a model's own names


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
    trained_rows = _with_trained_rows(model, "lora: ") if new_tokens else []
    inject_adapter_in_model(
        LoraConfig(
            r=rank,
            lora_alpha=cast(Any, alpha),  # peft says int, and takes any number
            lora_dropout=dropout,
            target_modules=[name for name in linear if name.rpartition(".")[2] in (target_modules or kinds)],
            trainable_token_indices={name: list(new_tokens) for name in trained_rows} or None,
        ),
        model,
        _ADAPTER,
    )
    for parameter in trained_elsewhere:  # peft takes everything but its adapters out of training
        parameter.requires_grad_(True)


def adapted_twin(model: PreTrainedModel, rank: int, alpha: float) -> PreTrainedModel:
    """The language model, without its head, once more: of the same parameters, which train as they did, with adapters
    of its own beside all linear layers, in the place of those that the model has.

    It is a module of its own, so that it has its adapters whenever it is run, for a recompute of activations too.

    Args:
        rank, alpha: as of `add_lora`.

    Raises:
        ValueError: it has no linear layers.
    """
    decoder = model.get_decoder()
    trained = {parameter: parameter.requires_grad for parameter in decoder.parameters()}
    twin: PreTrainedModel = copy.deepcopy(decoder, {id(parameter): parameter for parameter in trained})
    for name, layer in [*twin.named_modules()]:
        if isinstance(layer, LoraLayer):
            twin.set_submodule(name, layer.get_base_layer())
    linear = [name for name, module in twin.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("its language model has no linear layers that adapters could stand beside")
    config = LoraConfig(r=rank, lora_alpha=cast(Any, alpha), target_modules=linear)
    inject_adapter_in_model(config, twin, _ADAPTER)
    for parameter, trains in trained.items():  # peft takes everything but its adapters out of training
        parameter.requires_grad_(trains)
    return twin


def without_lora(module: nn.Module) -> nn.Module:
    """A module with its adapters, and its tokens' rows, merged into weights of its own, as if it had never had any."""
    for name, part in [*module.named_modules()]:
        if isinstance(part, LoraLayer):
            part.merge()
            module.set_submodule(name, part.get_base_layer())
        elif isinstance(part, TrainableTokensWrapper):
            part.token_adapter.merge()
            module.set_submodule(name, part.token_adapter.get_base_layer())
    return module


def add_token_rows(model: PreTrainedModel, tokens: Sequence[int]) -> None:
    """Makes rows of the embeddings and of the head parameters of their own, beside tables that train as before, so that
    they can have a learning rate of their own: the tables' rows are put aside, and get no gradient.

    Raises:
        UserError: as `add_lora`, of the head's rows.
    """
    indices = {name: list(tokens) for name in _with_trained_rows(model, "lr.new_tokens: ")}
    before = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tied = {"tie_word_embeddings": len(indices) == 1}
    set_additional_trainable_modules(model, LoraConfig(trainable_token_indices=indices), tied, _ADAPTER)
    for parameter in before:  # peft takes the tables out of training
        parameter.requires_grad_(True)


def _with_trained_rows(model: PreTrainedModel, key: str) -> list[str]:
    """Names of the embeddings and, if it is untied, of the head, whose single rows can be trained.

    Raises:
        UserError: peft cannot.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise UserError(
            f"{key}the head of {model.config.model_type} has a bias, with which peft does not train single rows, as "
            "the latent tokens need"
        )
    name_of = {module: name for name, module in model.named_modules()}
    return [name_of[embeddings]] if head.weight is embeddings.weight else [name_of[embeddings], name_of[head]]


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


def save_lora(model: PreTrainedModel, state: dict[str, Tensor], base: str, folder: Path) -> None:
    """What training has changed of a model with adapters, in peft's own form: for `PeftModel.from_pretrained` on its
    base. Nothing of a model without adapters, or of one that trains what peft does not save: a parameter of no module
    but the whole model (LLaVA-OneVision's `image_newline`).

    Parts that train beside the language model are in it whole, as peft's `modules_to_save`.

    Args:
        state: the model's, or that of its parameters alone.
        base: folder or hub id of the model without the adapters, whose embeddings may have to grow to as many rows.
    """
    own: Any = model  # peft_config is peft's
    if not hasattr(model, "peft_config"):
        return
    parts = list(_trained_parts(model, {id(model.get_decoder()), id(model.get_output_embeddings())}))
    in_parts = tuple(f"{part}." for part in parts)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if any(not name.startswith(in_parts) and not any(kind in name for kind in _OF_PEFT) for name in trained):
        return
    saved = get_peft_model_state_dict(model, state, save_embedding_layers=False)
    saved |= {name: tensor for name, tensor in state.items() if name.startswith(in_parts)}
    config = copy.copy(own.peft_config[_ADAPTER])
    config.base_model_name_or_path, config.inference_mode, config.modules_to_save = base, True, parts or None
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tensors = {f"{_IN_PEFT}{name}": tensor.contiguous() for name, tensor in saved.items()}
    save_file(tensors, folder / ADAPTER_FILES[1], metadata={"format": "pt"})


def _trained_parts(module: nn.Module, own: set[int], name: str = "") -> Iterator[str]:
    """Names of the largest modules below one that train, without those of the language model (ids) and what holds them;
    peft does not take lists."""
    if id(module) in own or not any(parameter.requires_grad for parameter in module.parameters()):
        return
    if isinstance(module, nn.ModuleList) or any(id(part) in own for part in module.modules()):
        for child, part in module.named_children():
            yield from _trained_parts(part, own, f"{name}.{child}".removeprefix("."))
    else:
        yield name
