"""Qwen3-VL (Qwen team 2025, arXiv:2511.21631): features of several layers of the vision tower enter the language model,
one after each of its first layers (DeepStack, Meng et al. 2024, arXiv:2406.04334)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from multicoco.models.families.family import Embedded
from multicoco.models.families.qwen_vl import QwenVL
from multicoco_kernels import send


class Qwen3VL(QwenVL):
    """`<|vision_start|>`, image tokens, `<|vision_end|>` for every image."""

    parts = {  # noqa: RUF012
        "vision_tower": ("visual.patch_embed", "visual.pos_embed", "visual.blocks"),
        "projector": ("visual.merger", "visual.deepstack_merger_list"),
    }

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        return config.model_type in ("qwen3_vl", "qwen3_vl_moe")

    def all_features(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
        seen = self.see(model, inputs)
        return [seen.pooler_output, *seen.deepstack_features]

    def projectors(self, model: PreTrainedModel) -> list[nn.Module]:
        first, later = (model.base_model.get_submodule(path) for path in self.parts["projector"])
        return [first, *later.children()]

    def embed(
        self, model: PreTrainedModel, input_ids: Tensor, inputs: dict[str, Tensor], on_host: Tensor | None = None
    ) -> Embedded:
        decoder: Any = model.get_decoder()
        if "_deepstack_process" not in vars(decoder):
            decoder._deepstack_process = partial(_add_features, decoder._deepstack_process)
        return super().embed(model, input_ids, inputs, on_host)

    def further(self, at_image: Tensor, later: Sequence[Tensor]) -> Callable[[slice], dict[str, Any]]:
        row, column = at_image.nonzero(as_tuple=True)  # [N], of every image token, in the order of the features
        taken = set(column.tolist())

        def of_pass(columns: slice) -> dict[str, Any]:
            if taken.isdisjoint(range(columns.start, columns.stop)):
                return {}
            here = ((column >= columns.start) & (column < columns.stop)).nonzero()[:, 0]
            places = send(torch.stack([row[here], column[here] - columns.start]), later[0].device)
            own = send(here, later[0].device)
            return {"visual_pos_masks": places, "deepstack_visual_embeds": [of_layer[own] for of_layer in later]}

        return of_pass

    def lie_of_patches(self, grids: Tensor, device: torch.device) -> dict[str, Tensor]:
        vision = self.config.vision_config
        merge, side = vision.spatial_merge_size, int(vision.num_position_embeddings**0.5)
        places, weights = get_vision_interpolation_indices_and_weights(
            grids, side, mode="bilinear", align_corners=True, spatial_merge_size=merge
        )
        return {
            "position_ids": get_vision_position_ids(grids, merge).to(device),
            "cu_seqlens": get_vision_cu_seqlens(grids),  # lengths are read on the host
            "interp_indices": places.to(device),
            "interp_weights": weights.to(device),
        }

    def with_layers(self, layers: int) -> PreTrainedConfig:
        config = super().with_layers(layers)
        config.vision_config.deepstack_visual_indexes = list(range(layers))[-1:]
        return config


def _add_features(by_mask: Callable[..., Tensor], hidden: Tensor, places: Tensor, features: Tensor) -> Tensor:
    """In the place of the decoder's own addition, which asks the device where its mask is true: (B, T, D) and (N, D) at
    places (2, N), in rows and columns; at the mask of the model's own forward by its own way."""
    if places.dtype == torch.bool:
        return by_mask(hidden, places, features)
    return hidden.index_put(tuple(places), features.to(hidden), accumulate=True)
