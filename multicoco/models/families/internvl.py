"""InternVL 3 and its like in transformers' own form (`-hf`): an image is cut into tiles of one size, each of which is a
fixed number of tokens."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedTokenizerBase

from multicoco.data.collate import ImageInputs
from multicoco.errors import UserError
from multicoco.models.families.family import Tile
from multicoco.models.families.sighted import Sighted


class InternVL(Sighted):
    """`<img>`, tiles x image_seq_length context tokens, `</img>` for every image."""

    input_names = ("pixel_values",)
    is_proven = True
    other_forms = {  # noqa: RUF012
        "internvl_chat": "the same in transformers' own form, whose name ends in -hf (OpenGVLab/InternVL3-1B-hf)"
    }
    parts = {"vision_tower": ("vision_tower",), "projector": ("multi_modal_projector",)}  # noqa: RUF012

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        return config.model_type == "internvl"

    def load_image_processor(self, source: str, max_image_tiles: int, **options: Any) -> Any:
        # AutoProcessor would need torchvision for the video part, which is not used here
        return AutoImageProcessor.from_pretrained(
            source, backend="pil", crop_to_patches=True, max_patches=max_image_tiles, **options
        )

    def read_images(self, images: Sequence[Image.Image], image_processor: Any) -> ImageInputs:
        if not images:
            return ImageInputs()
        # [tiles, 3, H, W] each; more than one tile ends with the thumbnail of the whole image
        tiles = [image_processor(image, return_tensors="pt").pixel_values for image in images]
        return ImageInputs([len(t) * self.config.image_seq_length for t in tiles], {"pixel_values": torch.cat(tiles)})

    def image_ids(self, written: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        start, end = (getattr(tokenizer, f"{side}_image_token_id", None) for side in ("start", "end"))
        if start is None or end is None:
            raise UserError(
                "the model's tokenizer names no start_image_token or no end_image_token: is it an InternVL `-hf` model?"
            )
        return [start, *super().image_ids(written, tokenizer), end]

    def laid_out(self, columns: Tensor, tensors: dict[str, Tensor], image: int) -> Tensor:
        side = math.isqrt(self.tile.tokens)
        return columns[-(side**2) :].view(side, side)

    def with_layers(self, layers: int) -> PreTrainedConfig:
        config = super().with_layers(layers)
        config.vision_config.num_hidden_layers = layers
        return config

    @property
    def tile(self) -> Tile:
        vision = self.config.vision_config
        (height, width), patch = vision.image_size, vision.patch_size
        patches = 1 + (height // patch[0]) * (width // patch[1])  # with the class token
        return Tile((vision.num_channels, height, width), patches, vision.hidden_size, self.config.image_seq_length)

    def most_tiles(self, max_image_tiles: int) -> int:
        return max_image_tiles + (max_image_tiles > 1)  # a cut image comes with a thumbnail of the whole

    def image_features(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        features: Tensor = model.get_image_features(**inputs, return_dict=True).pooler_output
        return features

    def blank_tiles(self, n_tiles: int, like: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": like.new_zeros(n_tiles, *self.tile.shape)}
