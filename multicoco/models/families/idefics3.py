"""SmolVLM, SmolVLM2 and Idefics3 (Laurençon et al. 2024, arXiv:2408.12637): an image is cut into rows and columns of
tiles, each named in the text, and shown once more as a whole."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from multicoco.data.collate import ImageInputs
from multicoco.errors import UserError
from multicoco.models.families.family import Tile
from multicoco.models.families.sighted import Sighted


class Idefics3(Sighted):
    """For every tile a mark, its row and column, image tokens; the whole image likewise; and a mark at the end."""

    input_names = ("pixel_values",)
    is_proven = True
    parts = {"vision_tower": ("vision_model",), "projector": ("connector",)}  # noqa: RUF012

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        return config.model_type in ("idefics3", "smolvlm")

    def load_image_processor(self, source: str, max_image_tiles: int, **options: Any) -> Any:
        # AutoProcessor would need torchvision for the video part, which is not used here
        processor = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
        side = processor.max_image_size["longest_edge"]
        processor.size = {"longest_edge": min(processor.size["longest_edge"], math.isqrt(max_image_tiles) * side)}
        return processor

    def read_images(self, images: Sequence[Image.Image], image_processor: Any) -> ImageInputs:
        if not images:
            return ImageInputs()
        read = [image_processor(image, return_row_col_info=True, return_tensors="pt") for image in images]
        tiles = torch.cat([of_image.pixel_values[0] for of_image in read])  # [N, 3, H, W], the whole image last of each
        return ImageInputs([(of_image.rows[0][0], of_image.cols[0][0]) for of_image in read], {"pixel_values": tiles})

    def written(self, n_tiles: int) -> tuple[int, int]:
        """Rows and columns, 0 for an image in one piece; a square of them where the tiles are not of an image."""
        side = math.isqrt(n_tiles - 1)
        return side, side

    def image_ids(self, written: tuple[int, int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        rows, columns = written
        image = [self.config.image_token_id] * self.tile.tokens
        mark = _known("<fake_token_around_image>", tokenizer)
        placed: list[int] = []
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                placed += [mark, _known(f"<row_{row}_col_{column}>", tokenizer), *image]
            placed += tokenizer.encode("\n" if row < rows else "\n\n", add_special_tokens=False)
        return [*placed, mark, _known("<global-img>", tokenizer), *image, mark]

    def laid_out(self, columns: Tensor, tensors: dict[str, Tensor], image: int) -> Tensor:
        side = math.isqrt(self.tile.tokens)
        return columns[-(side**2) :].view(side, side)

    def own_inputs(self, input_ids: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tiles[None] for name, tiles in inputs.items()}  # by rows, of which there is one

    def image_features(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        # part by part: no tile is padded, which the tower's own forward would ask the device in every step
        tower, projector = model.base_model.vision_model, model.base_model.connector
        tiles = inputs["pixel_values"].to(tower.dtype)
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        everywhere = torch.ones(len(tiles), side, side, dtype=torch.bool, device=tiles.device)
        patches = tower.embeddings(pixel_values=tiles, patch_attention_mask=everywhere)
        seen = tower.post_layernorm(tower.encoder(inputs_embeds=patches, attention_mask=None).last_hidden_state)
        features: Tensor = projector(seen)
        return features

    def blank_tiles(self, n_tiles: int, like: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": like.new_zeros(n_tiles, *self.tile.shape)}

    @property
    def tile(self) -> Tile:
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        shape = (vision.num_channels, vision.image_size, vision.image_size)
        return Tile(shape, patches, vision.hidden_size, patches // self.config.scale_factor**2)

    def most_tiles(self, max_image_tiles: int) -> int:
        side = math.isqrt(max_image_tiles)
        return side**2 + (side > 1)

    def with_layers(self, layers: int) -> PreTrainedConfig:
        config = super().with_layers(layers)
        config.vision_config.num_hidden_layers = layers
        return config

    def vision_layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        layers: Any = model.base_model.get_submodule("vision_model.encoder.layers")
        return list(layers)


def _known(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of a token that stands around images.

    Raises:
        UserError: the tokenizer has none.
    """
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int) or found == tokenizer.unk_token_id:
        raise UserError(f"the model's tokenizer has no token {token}: give its folder the tokenizer of the model")
    return found
