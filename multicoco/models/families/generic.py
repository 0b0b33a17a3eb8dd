"""Models of no family here that have the interface most vision-language models of transformers share.

That is: `get_image_features` makes features of `pixel_values` and of nothing else, which take the places of one token
(`image_token_id`); positions count along one axis; and transformers' own processor says how an image is written. Nobody
has tried them: every run compares the passes with the model at its start (`multicoco.latent.exactness`).
"""

import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from multicoco.data.collate import ImageInputs
from multicoco.errors import UserError
from multicoco.models.families.family import Tile
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
        return [self.config.image_token_id] * (n_tiles * self.tile.tokens)

    def most_tiles(self, max_image_tiles: int) -> None:
        """It is the processor that cuts images, by settings of its own."""

    def with_layers(self, layers: int) -> PreTrainedConfig:
        config = super().with_layers(layers)
        # the last layers: features may be those of an earlier one, which the config names by its number
        config.vision_config.num_hidden_layers += layers - 2
        return config

    @cached_property
    def tile(self) -> Tile:
        """A picture of the size that the tower takes. Its config does not say how many columns and tokens that is; the
        model without weights does.

        Raises:
            UserError: it cannot be asked.
        """
        given: list[Tensor] = []

        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))

        try:
            with torch.device("meta"), torch.no_grad():
                model: PreTrainedModel = self.auto_model.from_config(self.with_layers(2), dtype=torch.float32)
                self.vision_layers(model)[0].register_forward_pre_hook(note, with_kwargs=True)
                blank = self.blank_tiles(1, torch.empty(()))
                features = self.image_features(model, blank)
        except Exception as error:  # a model's own code may raise anything
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"a {self.config.model_type} model cannot be planned for: of no family of its own (docs/models.md), it "
                f"does not say without its weights what an image is on its way through it ({first})"
            ) from error
        (_, channels, height, width), numbers = blank["pixel_values"].shape, given[0].shape[-1]
        tokens = features.numel() // features.shape[-1]
        return Tile((channels, height, width), given[0].numel() // numbers, numbers, tokens)

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
        side = getattr(vision, "image_size", None)
        if side is None:
            raise UserError(
                f"a {self.config.model_type} model does not say how large its pictures are, which is asked where there "
                "are none: train it on examples with images alone, or add a family (docs/contributing.md)"
            )
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
