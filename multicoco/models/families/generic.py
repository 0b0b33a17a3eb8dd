"""Models of no family here that have the interface most vision-language models of transformers share.

That is: `get_image_features` makes features of `pixel_values` and of nothing else, which take the places of one token
(`image_token_id`); positions count along one axis; and transformers' own processor says how an image is written. Nobody
has tried them: every run compares the passes with the model at its start (`multicoco.latent.exactness`).
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from multicoco.errors import UserError
from multicoco.models.families.family import ImageInputs
from multicoco.models.families.sighted import Sighted

_TAKEN = {"input_ids", "attention_mask", "pixel_values"}


class Pictures:
    """transformers' own processor of a model, for single images.

    Args:
        taken: the names of what the model takes.

    Raises:
        UserError: the model takes more of an image than its pixels.
    """

    def __init__(self, processor: Any, taken: frozenset[str]):
        self.processor = processor
        if more := (self(Image.new("RGB", (64, 64))).keys() & taken) - _TAKEN:
            raise UserError(
                f"the model takes {', '.join(sorted(more))} beside tokens and pixels, which only a family of its own "
                "can give it (docs/contributing.md)"
            )

    def __call__(self, image: Image.Image) -> Any:
        token = self.processor.image_token
        return self.processor(text=token, images=image, add_special_tokens=False, return_tensors="pt")

    def save_pretrained(self, path: Path) -> None:
        """The part for images alone, as other families' are."""
        self.processor.image_processor.save_pretrained(path)


class Generic(Sighted):
    """Whatever the model's processor writes for every image."""

    keeps_features = False  # its features are not known to be of an image alone
    input_names = ("pixel_values",)
    parts = {"vision_tower": ("vision_tower",), "projector": ("multi_modal_projector",)}  # noqa: RUF012

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        has_parts = config.get_text_config() is not config and getattr(config, "image_token_id", None) is not None
        known = type(config) in cls.auto_model._model_mapping
        if not has_parts or not known or config.is_encoder_decoder:
            return False
        features = getattr(cls._model_class(config), "get_image_features", None)
        parameters = inspect.signature(features).parameters.values() if features else ()
        needed = {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        return needed == {"self", "pixel_values"}

    @classmethod
    def _model_class(cls, config: PreTrainedConfig) -> Any:
        return cls.auto_model._model_mapping[type(config)]

    def load_image_processor(self, source: str, max_image_tiles: int, **options: Any) -> Any:
        taken = frozenset(inspect.signature(self._model_class(self.config).forward).parameters)
        return Pictures(AutoProcessor.from_pretrained(source, **options), taken)

    def read_images(self, images: Sequence[Image.Image], image_processor: Any) -> ImageInputs:
        if not images:
            return ImageInputs()
        read = [image_processor(image) for image in images]
        tensors = {"pixel_values": _together([of_image["pixel_values"] for of_image in read])}
        return ImageInputs([of_image["input_ids"][0].tolist() for of_image in read], tensors)

    def written(self, n_tiles: int) -> list[int]:
        return [self.config.image_token_id]

    def image_ids(self, written: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return written

    def batch(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"pixel_values": _together([row["pixel_values"] for row in rows if row])} if any(rows) else {}

    def image_features(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        seeing: Any = model
        features = seeing.get_image_features(**inputs, return_dict=True).pooler_output
        return features if isinstance(features, Tensor) else torch.cat(list(features))

    def blank_tiles(self, n_tiles: int, like: Tensor) -> dict[str, Tensor]:
        vision = self.config.vision_config
        side = vision.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return {"pixel_values": like.new_zeros(n_tiles, getattr(vision, "num_channels", 3), height, width)}


def _together(pixels: Sequence[Tensor]) -> Tensor:
    """One tensor of all images' pixels.

    Raises:
        UserError: those of some have another shape.
    """
    if len(shapes := {tuple(tensor.shape[1:]) for tensor in pixels}) > 1:
        raise UserError(
            f"the model's processor makes pixels of several shapes ({', '.join(map(str, sorted(shapes)))}), which only "
            "a family of its own can batch (docs/contributing.md)"
        )
    return torch.cat(list(pixels))
