"""Weights that the authors of Coconut have saved with their own code."""

import pickle
from pathlib import Path
from typing import cast

import torch

from multicoco.errors import UserError
from multicoco.models.backbone import Backbone
from multicoco.models.vocabulary import add_latent_tokens

AUTHORS_TOKENS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")  # the order in which their code appends them


def load_authors_weights(backbone: Backbone, path: Path, init_token: str | None = None) -> None:
    """Loads a state dict that the authors' code has saved, `torch.save(coconut.state_dict())`, into its base model.

    Its keys begin with `base_causallm.`; `embedding.weight` is the input embeddings once more. Its vocabulary may end
    with the authors' three tokens, which stand behind the tokenizer's own; then the latent tokens are added here, and
    take over the rows of their namesakes.

    Args:
        init_token: as in `add_latent_tokens`; its embedding is replaced by the loaded ones.

    Raises:
        UserError: the file holds code or no tensors, or keys, shapes or vocabulary do not fit; all of them are listed.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {key.removeprefix("base_causallm."): tensor for key, tensor in state.items()}
        shapes = {key: tensor.shape for key, tensor in state.items()}
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read as a state dict of tensors ({str(error).splitlines()[0]}); a file that holds "
            "anything else could run code and is not loaded"
        ) from error
    model, own_words = backbone.model, len(backbone.tokenizer)
    name_of = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    sides = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if any(parameter is module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings()))
    }
    copy = state.pop("embedding.weight", None)
    source = state.get(name_of[id(model.get_input_embeddings().weight)])
    if copy is not None and source is not None and not torch.equal(copy, source):
        raise UserError(f"{path}: embedding.weight and the base model's embeddings differ: not one model")
    if {shapes[name][0] for name in sides & shapes.keys()} == {own_words + len(AUTHORS_TOKENS)}:
        add_latent_tokens(backbone, init_token)
        ids = cast(list[int], backbone.tokenizer.convert_tokens_to_ids(list(AUTHORS_TOKENS)))  # of a list, a list
        places = [*range(own_words), *ids]
        for name in sides & state.keys():
            rows = model.get_parameter(name).detach().clone()
            rows[places] = state[name].to(rows.dtype)
            state[name] = rows
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    if sides & state.keys() and model.config.get_text_config().tie_word_embeddings:
        expected = {key: shape for key, shape in expected.items() if key not in sides or key in state}
    problems = [
        *(f"missing {key}" for key in sorted(expected.keys() - state.keys())),
        *(f"unexpected {key}" for key in sorted(state.keys() - expected.keys())),
        *(
            f"{key} is {tuple(state[key].shape)}, the model's {tuple(expected[key])}"
            for key in sorted(expected.keys() & state.keys())
            if state[key].shape != expected[key]
        ),
    ]
    if problems:
        raise UserError(f"{path} does not fit {model.config.model_type} of model_id: {'; '.join(problems)}")
    model.load_state_dict(state, strict=False)
