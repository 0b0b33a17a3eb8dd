"""What Qwen's vision-language models have in common: images at their own resolution, positions of three axes.

An image is a grid of patches, (frames, height, width) with one frame, and every merge x merge of them are one token.
Positions are of (time, height, width). Text has the same number on all three. An image's tokens share their time; its
rows and columns count from there. What follows goes on after the larger of height and width, so that positions count
fewer than there are tokens (Wang et al. 2024, arXiv:2409.12191, section 2.1).
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from multicoco.data.collate import ImageInputs
from multicoco.errors import UserError
from multicoco.models.families.family import Tile
from multicoco.models.families.sighted import Sighted
from multicoco_kernels import send

_TILE_SIDE = 448  # pixels of the square in which the size of an image is counted; an InternVL tile's
_LONGEST_SIDES = 200  # transformers' image processor takes no image that is longer than so many times its width


class QwenVL(Sighted):
    """`<|vision_start|>`, an image token for every square of merged patches, `<|vision_end|>` for every image."""

    input_names = ("pixel_values", "image_grid_thw")
    beside_features = ("image_grid_thw",)
    host_inputs = ("image_grid_thw",)
    is_proven = True

    def load_image_processor(self, source: str, max_image_tiles: int, **options: Any) -> Any:
        # AutoProcessor would need torchvision for the video part, which is not used here
        processor = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
        longest = min(processor.size["longest_edge"], max_image_tiles * _TILE_SIDE**2)  # areas, whatever their names
        processor.size = {
            "shortest_edge": min(processor.size["shortest_edge"], longest),
            "longest_edge": longest,
        }
        return processor

    def read_images(self, images: Sequence[Image.Image], image_processor: Any) -> ImageInputs:
        if not images:
            return ImageInputs()
        for image in images:
            if max(image.size) > _LONGEST_SIDES * min(image.size):
                raise UserError(
                    f"an image of {image.width} x {image.height} pixels is too thin for a {self.config.model_type} "
                    f"model: crop it, or pad it to less than 1:{_LONGEST_SIDES}"
                )
        read = image_processor(list(images), return_tensors="pt")
        tokens = read.image_grid_thw.prod(-1) // self._merge**2
        return ImageInputs(tokens.tolist(), {name: read[name] for name in self.input_names})

    def laid_out(self, columns: Tensor, tensors: dict[str, Tensor], image: int) -> Tensor:
        _, height, width = tensors["image_grid_thw"][image].tolist()
        return columns.view(height // self._merge, width // self._merge)

    def position_ids(self, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """(3, B, T): time, height and width."""
        if "image_grid_thw" not in inputs:
            return super().position_ids(input_ids, attention_mask, inputs).expand(3, -1, -1)
        merged = inputs["image_grid_thw"] // inputs["image_grid_thw"].new_tensor([1, self._merge, self._merge])
        grids = send(merged, input_ids.device)
        ends = grids.prod(-1).cumsum(0)  # [N], of the images, counted in image tokens
        at_image = self.at_images(input_ids) & attention_mask.bool()
        place = (at_image.flatten().long().cumsum(0) - 1).view_as(input_ids)  # of an image token among all
        image = torch.searchsorted(ends, place, right=True).clamp(max=len(grids) - 1)
        _, height, width = grids[image].unbind(-1)  # [B, T] each
        within = place - (ends - grids.prod(-1))[image]
        is_last = place + 1 == ends[image]
        # how far each column takes the positions: text by one, an image with its last token
        advance = torch.where(at_image, torch.maximum(height, width) * is_last, attention_mask.long())
        start = advance.cumsum(-1) - advance
        own = torch.stack([torch.zeros_like(within), within // width, within % width])
        return (start + own * at_image) * attention_mask

    def own_inputs(self, input_ids: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**inputs, "mm_token_type_ids": self.at_images(input_ids).int()} if inputs else {}

    def smallest_picture(self, like: Tensor) -> dict[str, Tensor]:
        return self._blank(1, self._merge, like)

    def blank_tiles(self, n_tiles: int, like: Tensor) -> dict[str, Tensor]:
        return self._blank(n_tiles, self._side, like)

    def _blank(self, n_images: int, side: int, like: Tensor) -> dict[str, Tensor]:
        """Square images of side x side patches. Their grids are numbers, which a meta device has not."""
        vision = self.config.vision_config
        numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grids = torch.tensor([[1, side, side]] * n_images, device="cpu" if like.is_meta else like.device)
        return {"pixel_values": like.new_zeros(n_images * side**2, numbers), "image_grid_thw": grids}

    @property
    def tile(self) -> Tile:
        """A square of about 448 x 448 pixels: images are as many of them as their area is."""
        vision = self.config.vision_config
        pixels = self._side * vision.patch_size
        shape = (vision.in_channels * vision.temporal_patch_size, pixels, pixels)  # an image is a film of equal frames
        return Tile(shape, self._side**2, self.vision_width, (self._side // self._merge) ** 2)

    @property
    def vision_width(self) -> int:
        """Numbers of a patch in the vision tower."""
        vision = self.config.vision_config
        width: int = getattr(vision, "embed_dim", vision.hidden_size)  # Qwen2-VL's hidden_size is the language model's
        return width

    @property
    def _merge(self) -> int:
        merge: int = self.config.vision_config.spatial_merge_size
        return merge

    @property
    def _side(self) -> int:
        """Of a tile, in patches."""
        side: int = _TILE_SIDE // (self.config.vision_config.patch_size * self._merge) * self._merge
        return side

    def with_layers(self, layers: int) -> PreTrainedConfig:
        config = super().with_layers(layers)
        config.vision_config.depth = layers
        return config

    def vision_layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        blocks: Any = model.base_model.get_submodule("visual.blocks")
        return list(blocks)

    def image_features(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        features: Tensor = self.see(model, inputs).pooler_output
        return features

    def see(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        """The output of the vision tower, merged. It is told how the patches lie, made on the host: the tower itself
        would ask the device in each of its layers."""
        tower, grids = model.base_model.visual, inputs["image_grid_thw"].cpu()
        pixels = inputs["pixel_values"].to(tower.dtype)
        return tower(pixels, grid_thw=grids, **self.lie_of_patches(grids, pixels.device))

    def lie_of_patches(self, grids: Tensor, device: torch.device) -> dict[str, Tensor]:
        """(N, 3) grids on the host -> the arguments in which the vision tower takes what it makes of them."""
        raise NotImplementedError
