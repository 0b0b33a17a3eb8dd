"""What the data pipeline, the latent passes and the planner ask of a model family."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from multicoco.errors import UserError
from multicoco.registry import load_all


@dataclass(frozen=True)
class ImageInputs:
    """The images of one example.

    Attributes:
        tokens: of each image, how many image tokens it takes in the language model.
        tensors: what the model takes of them, by the names of its arguments; empty without images.
    """

    tokens: Sequence[int] = ()
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Family:
    """A kind of model, by its transformers config. Here: a decoder-only language model that sees no images.

    Attributes:
        auto_model: transformers' class that loads it.
        sees_images: whether it takes images.
        input_names: what its forward takes beside the tokens, which the collator batches and the engine moves.
        parts: attributes of the base model that `freeze` names.
    """

    auto_model: ClassVar[Any] = AutoModelForCausalLM
    sees_images: ClassVar[bool] = False
    input_names: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[dict[str, str]] = {}

    def __init__(self, config: PreTrainedConfig):
        self.config = config

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        """Whether a model of this config is one of the family."""
        raise NotImplementedError

    # data: in the loader's workers, without the model

    def load_image_processor(self, source: str, max_image_tiles: int, **options: Any) -> Any:
        """transformers' image processor; None for a family that sees none. Raises as `from_pretrained`."""
        return None

    def read_images(self, images: Sequence[Image.Image], image_processor: Any) -> ImageInputs:
        """RGB pictures as tokens and tensors."""
        return ImageInputs()

    def content(self, text: str, n_images: int) -> str | list[dict[str, str]]:
        """A user's turn for the chat template: the images, in their order, then the text."""
        return text

    def place_images(self, ids: list[int], tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The template's ids, (T,), with the one token of each image expanded to as many as `ImageInputs.tokens` says.

        Raises:
            UserError: the template does not show every image once.
        """
        return ids

    def batch(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The `ImageInputs.tensors` of a batch's rows as the model takes them; empty if no row has any."""
        return {name: torch.cat([row[name] for row in rows if row]) for name in self.input_names if any(rows)}

    # model: in every step, on the device

    def position_ids(self, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """(B, T) tokens and mask -> positions as the decoder takes them, (B, T) counted from each row's first token,
        or with further axes in front."""
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)

    def embed(self, model: PreTrainedModel, input_ids: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """(B, T) tokens -> (B, T, D) embeddings, image features in place. Calls the same modules whatever the batch
        holds, as ZeRO-3 needs."""
        embedding: nn.Module = model.get_input_embeddings()
        embeds: Tensor = embedding(input_ids)
        return embeds


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model's config: the first one that takes it.

    Raises:
        UserError: none does.
    """
    families = load_all("families")
    for family in families.values():
        if family.matches(config):
            found: Family = family(config)
            return found
    raise UserError(
        f"a {config.model_type} model is of no family that is supported ({', '.join(families)}): give one of these, or "
        "add a family (docs/contributing.md)"
    )
