"""LLaVA-OneVision (Li et al. 2024, arXiv:2408.03326): an image is shown as a whole and, if it is the only one of its
example, once more in tiles that lie on one of a few canvases.

The tiles' features are put together again, cut to the image without its padding, made smaller where there are too many,
and end every row, and so every image, with one learned vector (`image_newline`).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image

from multicoco.data.collate import ImageInputs
from multicoco.models.families.family import Tile
from multicoco.models.families.sighted import Sighted

_TOO_MANY = 1.1  # times the most columns and rows, above which the model makes features smaller


class LlavaOneVision(Sighted):
    """Image tokens for every image: of the whole, then row by row of the tiles."""

    input_names = ("pixel_values", "image_sizes", "batch_num_images")
    host_inputs = ("image_sizes", "batch_num_images")
    is_proven = True
    parts = {"vision_tower": ("vision_tower",), "projector": ("multi_modal_projector",)}  # noqa: RUF012

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        return config.model_type == "llava_onevision"

    def load_image_processor(self, source: str, max_image_tiles: int, **options: Any) -> Any:
        # AutoProcessor would need torchvision for the video part, which is not used here
        processor = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
        area = max_image_tiles * self.config.vision_config.image_size**2
        canvases = processor.image_grid_pinpoints  # the first one of equals is taken: their order stays
        small = [canvas for canvas in canvases if math.prod(canvas) <= area]
        processor.image_grid_pinpoints = small or [min(canvases, key=math.prod)]
        self.config.image_grid_pinpoints = processor.image_grid_pinpoints  # by which the model puts tiles together
        return processor

    def read_images(self, images: Sequence[Image.Image], image_processor: Any) -> ImageInputs:
        if not images:
            return ImageInputs()
        read = image_processor([list(images)], return_tensors="pt")
        sizes = read["image_sizes"].tolist()
        tokens = [self._cut_tokens(*sizes[0])] if len(images) == 1 else [self.tile.tokens] * len(images)
        return ImageInputs(tokens, {"pixel_values": read["pixel_values"].flatten(0, 1), **_lie(sizes, [len(images)])})

    def _cut_tokens(self, height: int, width: int) -> int:
        """Of an image that is the only one, by its size in pixels."""
        rows, columns = select_best_resolution((height, width), self.config.image_grid_pinpoints)
        side: int = self._side
        pixels: int = self.config.vision_config.image_size
        features = torch.empty(1, rows // pixels * side, columns // pixels * side, device="meta")
        _, rows, columns = unpad_image(features, (height, width)).shape
        most = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        if (ratio := math.sqrt(rows * columns / (most * side**2))) > _TOO_MANY:
            rows, columns = int(rows // ratio), int(columns // ratio)
        return side**2 + int(rows * (columns + 1))

    def _tiles(self, height: int, width: int) -> int:
        """Of an image that is the only one, with the whole."""
        rows, columns = select_best_resolution((height, width), self.config.image_grid_pinpoints)
        side: int = self.config.vision_config.image_size
        tiles: int = math.ceil(rows / side) * math.ceil(columns / side)
        return 1 + tiles

    def laid_out(self, columns: Tensor, tensors: dict[str, Tensor], image: int) -> Tensor:
        return columns[: self._side**2].view(self._side, self._side)

    def image_features(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        seeing: Any = model.base_model
        # numbers are read on the host: for each image the model itself would ask the device
        lie = {name: inputs[name].cpu() for name in ("image_sizes", "batch_num_images")}
        features = seeing.get_image_features(inputs["pixel_values"], **lie, return_dict=True).pooler_output
        return torch.cat(features)

    def put_in_order(self, model: PreTrainedModel, projected: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """(N, P, D) of tiles -> (T, D), the images put together."""
        seeing: Any = model.base_model
        sizes, of_rows = (inputs[name].cpu() for name in ("image_sizes", "batch_num_images"))
        alone = [n == 1 for n in of_rows.tolist() for _ in range(n)][: len(sizes)]
        tiles = [self._tiles(*size) if is_cut else 1 for size, is_cut in zip(sizes.tolist(), alone, strict=True)]
        features, _ = seeing.pack_image_features(
            projected.split(tiles), sizes, seeing.image_newline, model.config.vision_aspect_ratio
        )
        return torch.cat(features)

    def blank_tiles(self, n_tiles: int, like: Tensor) -> dict[str, Tensor]:
        side = self.config.vision_config.image_size
        pixels = like.new_zeros(n_tiles, *self.tile.shape)
        # as of an example of several images, which are not cut; one alone would be
        lie = _lie([[side, side]] * n_tiles, [max(2, n_tiles)])
        return {"pixel_values": pixels, **lie}

    @property
    def _side(self) -> int:
        """Of a tile, in features."""
        vision = self.config.vision_config
        side: int = vision.image_size // vision.patch_size
        return side

    @property
    def tile(self) -> Tile:
        vision, patches = self.config.vision_config, self._side**2
        shape = (vision.num_channels, vision.image_size, vision.image_size)
        return Tile(shape, patches, vision.hidden_size, patches + 1)

    def written(self, n_tiles: int) -> int:
        """At the most: of tiles in one column, in which there are the most rows."""
        return n_tiles * self._side**2 + max(1, n_tiles - 1) * self._side

    def most_tiles(self, max_image_tiles: int) -> int:
        return max_image_tiles + 1  # and the whole

    def part(self, model: PreTrainedModel, name: str) -> nn.Module:
        part = super().part(model, name)
        newline: nn.Parameter = model.base_model.get_parameter("image_newline")
        return nn.ModuleList([part, nn.ParameterList([newline])]) if name == "projector" else part

    def with_layers(self, layers: int) -> PreTrainedConfig:
        config = super().with_layers(layers)
        config.vision_config.num_hidden_layers = layers
        return config


def _lie(sizes: Sequence[Sequence[int]], of_rows: Sequence[int]) -> dict[str, Tensor]:
    """How images lie: (N, 2) heights and widths in pixels, and how many images each row has."""
    return {"image_sizes": torch.tensor(sizes), "batch_num_images": torch.tensor(of_rows)}
