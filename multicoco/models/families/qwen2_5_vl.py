"""Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923): most layers of its vision tower attend within windows."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from multicoco.models.families.qwen_vl import QwenVL


class Qwen25VL(QwenVL):
    """`<|vision_start|>`, image tokens, `<|vision_end|>` for every image."""

    parts = {  # noqa: RUF012
        "vision_tower": ("visual.patch_embed", "visual.blocks"),
        "projector": ("visual.merger",),
    }

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        return config.model_type == "qwen2_5_vl"

    def lie_of_patches(self, grids: Tensor, device: torch.device) -> dict[str, Tensor]:
        vision = self.config.vision_config
        merge = vision.spatial_merge_size
        order, window_ends = get_vision_window_index(grids, merge, vision.window_size, vision.patch_size)
        return {
            "position_ids": get_vision_position_ids(grids, merge).to(device),
            "cu_seqlens": get_vision_cu_seqlens(grids),  # lengths are read on the host
            "window_index": order.to(device),
            "cu_window_seqlens": window_ends,
        }
