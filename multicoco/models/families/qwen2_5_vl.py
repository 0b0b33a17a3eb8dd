"""Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923): most layers of its vision tower attend within windows."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.vision_utils import get_vision_window_index

from multicoco.models.families.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """`<|vision_start|>`, image tokens, `<|vision_end|>` for every image."""

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        return config.model_type == "qwen2_5_vl"

    def put_in_order(self, model: PreTrainedModel, projected: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The tower's order is that of its windows."""
        order = self.lie_of_patches(inputs["image_grid_thw"].cpu(), projected.device)["window_index"]
        return projected[torch.argsort(order)]

    def lie_of_patches(self, grids: Tensor, device: torch.device) -> dict[str, Tensor]:
        vision = self.config.vision_config
        order, ends = get_vision_window_index(grids, vision.spatial_merge_size, vision.window_size, vision.patch_size)
        windows = {"window_index": order.to(device), "cu_window_seqlens": ends}
        return {**super().lie_of_patches(grids, device), **windows}
