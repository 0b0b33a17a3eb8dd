"""Loading a backbone: model, tokenizer and image processor, the latent tokens, and what of it is frozen."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from multicoco.curriculum import LatentTokens
from multicoco.errors import UserError
from multicoco.models.lora import merge_lora

LATENT_TOKENS = ("<|start-latent|>", "<|latent|>", "<|end-latent|>")
AUTHORS_TOKENS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")  # the order in which their code appends them


@dataclass
class Backbone:
    """A model with what turns text and images into its inputs.

    Attributes:
        image_processor: None for a text-only model.
        latent_tokens: None until `add_latent_tokens`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_processor: object | None
    latent_tokens: LatentTokens | None = None

    @property
    def end_token_ids(self) -> list[int]:
        """What ends an answer: the tokenizer's end of text, and what the model itself was made to stop at."""
        own = self.model.generation_config.eos_token_id
        return sorted({self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})

    def save_pretrained(self, path: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """A Hugging Face directory: safetensors weights, adapters merged into them, tokenizer and image processor."""
        weights = self.model.state_dict() if state_dict is None else state_dict
        self.model.save_pretrained(path, state_dict=merge_lora(self.model, weights))
        self.tokenizer.save_pretrained(path)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(path)


def load_backbone(
    source: str,
    dtype: torch.dtype = torch.float32,
    max_image_tiles: int = 12,
    trust_remote_code: bool = False,
) -> Backbone:
    """Loads a Hugging Face directory or hub id, InternVL (`-hf`) or a text-only causal LM.

    Raises:
        UserError: nothing loadable there, weights that do not fit, or a tokenizer without an end-of-text token.
    """
    options = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        sees_images = hasattr(config, "vision_config")
        auto_model = AutoModelForImageTextToText if sees_images else AutoModelForCausalLM
        model, report = auto_model.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
        # AutoProcessor would need torchvision for InternVL's video part, which is not used here
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        image_processor = None
        if sees_images:
            image_processor = AutoImageProcessor.from_pretrained(
                source, backend="pil", crop_to_patches=True, max_patches=max_image_tiles, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"model {source!r} cannot be loaded: {str(error).strip().splitlines()[0]} "
            "(give a Hugging Face directory with config.json, weights and tokenizer, or a hub id)"
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise UserError(
                f"model {source!r}: {kind.replace('_', ' ')} in its weights: {sorted(map(str, report[kind]))}"
            )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model {source!r}: its tokenizer has no end-of-text token (eos_token); answers would never end"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Backbone(model, tokenizer, image_processor)


def add_latent_tokens(backbone: Backbone, init_token: str | None = None) -> None:
    """Adds the latent tokens, each initialised from a known token's embedding (input and output side).

    Embeddings that are large enough already keep their size: InternVL's and Qwen's are padded beyond the
    tokenizer. A model that has the tokens already is left alone.

    Args:
        init_token: the known token; the end-of-text token by default.

    Raises:
        UserError: init_token is not one token of the vocabulary, or only some latent tokens exist.
    """
    tokenizer, model = backbone.tokenizer, backbone.model
    vocabulary = tokenizer.get_vocab()
    present = [token for token in LATENT_TOKENS if token in vocabulary]
    if len(present) not in (0, len(LATENT_TOKENS)):
        raise UserError(
            f"the tokenizer has {present} but not all of {list(LATENT_TOKENS)}: it is not a MultiCoCo checkpoint"
        )
    if not present:
        init_token = init_token or tokenizer.eos_token
        if init_token not in vocabulary:
            raise UserError(f"coconut.latent_init_token: {init_token!r} is not a token of the model's vocabulary")
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(LATENT_TOKENS)}, replace_extra_special_tokens=False
        )
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        ids = tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS))
        with torch.no_grad():
            for module in (model.get_input_embeddings(), model.get_output_embeddings()):
                module.weight[ids] = module.weight[vocabulary[init_token]].clone()
                if getattr(module, "bias", None) is not None:
                    module.bias[ids] = module.bias[vocabulary[init_token]].clone()
    backbone.latent_tokens = LatentTokens(*tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS)))


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
        places = [*range(own_words), *backbone.tokenizer.convert_tokens_to_ids(list(AUTHORS_TOKENS))]
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


def freeze(
    model: PreTrainedModel, vision_tower: bool = False, projector: bool = False, language_model: bool = False
) -> None:
    """Takes parts of a vision-language model out of training; the language model goes with its head.

    Raises:
        UserError: the model has no such part, or nothing is left to train.
    """
    parts: list[nn.Module] = []
    for name, wanted in (("vision_tower", vision_tower), ("multi_modal_projector", projector)):
        if wanted:
            if not hasattr(model.base_model, name):
                raise UserError(f"freeze: {model.config.model_type} has no {name}; set it to false")
            parts.append(getattr(model.base_model, name))
    if language_model:
        parts += [model.get_decoder(), model.get_output_embeddings()]
    for part in parts:
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("freeze: nothing is left to train; set one of its parts to false")


def checkpoint_activations(model: PreTrainedModel) -> None:
    """In training mode, activations are computed again in backward instead of kept, layer by layer. Backward still ends
    where nothing before is trained: a frozen vision tower runs once."""
    # reentrant checkpointing would fire ZeRO's gradient hooks once per latent pass
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()  # which only reentrant checkpointing needs
