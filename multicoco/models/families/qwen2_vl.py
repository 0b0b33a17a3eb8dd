"""Qwen2-VL (Wang et al. 2024, arXiv:2409.12191)."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from multicoco.models.families.qwen_vl import QwenVL


class Qwen2VL(QwenVL):
    """`<|vision_start|>`, image tokens, `<|vision_end|>` for every image."""

    parts = {  # noqa: RUF012
        "vision_tower": ("visual.patch_embed", "visual.blocks"),
        "projector": ("visual.merger",),
    }

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        return config.model_type == "qwen2_vl"

    def lie_of_patches(self, grids: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {
            "position_ids": get_vision_position_ids(grids, self.config.vision_config.spatial_merge_size).to(device),
            "cu_seqlens": get_vision_cu_seqlens(grids),  # lengths are read on the host
        }
