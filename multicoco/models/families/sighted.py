"""What families that see images have in common: every image is a run of one token, in whose places its features go."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerBase

from multicoco.data.features import FEATURES, SEEN
from multicoco.errors import UserError
from multicoco.models.families.family import Embedded, Family, nothing_further
from multicoco_kernels import coordinates


class Sighted(Family):
    """A language model behind a vision tower and a projector. Its config names the image token (image_token_id)."""

    auto_model = AutoModelForImageTextToText
    sees_images = True
    keeps_features = True

    def content(self, text: str, n_images: int) -> list[dict[str, str]]:
        return [*({"type": "image"} for _ in range(n_images)), {"type": "text", "text": text}]

    def place_images(self, ids: list[int], tokens: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        image_token: int = self.config.image_token_id
        if ids.count(image_token) != len(tokens):
            raise UserError(
                f"the model's chat template shows {ids.count(image_token)} images of {len(tokens)}: give its folder "
                "the template (chat_template.jinja) and the tokenizer that belong to the model"
            )
        written = iter(tokens)
        placed: list[int] = []
        for token in ids:
            placed += self.image_ids(next(written), tokenizer) if token == image_token else [token]
        return placed

    def image_ids(self, written: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """What stands for an image of so many tokens, in the place of the one token of the template."""
        return [self.config.image_token_id] * int(written)

    def embed(
        self, model: PreTrainedModel, input_ids: Tensor, inputs: dict[str, Tensor], on_host: Tensor | None = None
    ) -> Embedded:
        embeds = super().embed(model, input_ids, inputs).embeds
        if FEATURES in inputs:  # all rows' are given, or none's: every rank calls the same modules
            first, *later = inputs[FEATURES].unbind(1)
        elif SEEN in inputs:
            first, *later = self.project(model, inputs)
        else:
            first, *later = self.all_features(model, inputs or self.smallest_picture(embeds))
        if not inputs or (SEEN in inputs and not len(inputs[SEEN])):
            # a blank picture that counts for nothing: every rank must call the same modules
            return Embedded(embeds + 0 * sum(features.sum().to(embeds) for features in (first, *later)))
        at_image = self.at_images(input_ids if on_host is None else on_host)
        places = coordinates(at_image, embeds.device)  # not by the mask: its backward would ask the device
        embeds = embeds.index_put(places, first.flatten(0, -2).to(embeds))
        return Embedded(embeds, self.further(at_image, later))

    def columns_of_images(
        self, input_ids: Tensor, tokens: Sequence[Any], tokenizer: PreTrainedTokenizerBase
    ) -> list[Tensor]:
        columns = self.at_images(input_ids).nonzero()[:, 0]
        image_token = self.config.image_token_id
        return [*columns.split([self.image_ids(written, tokenizer).count(image_token) for written in tokens])]

    def all_features(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
        """`image_features` and, behind them, those that enter the language model later, shaped likewise."""
        return [self.image_features(model, inputs)]

    def kept(self, model: PreTrainedModel, inputs: dict[str, Tensor], projected: bool) -> dict[str, Tensor]:
        name, *beside = self.names_kept(projected)
        if projected:
            made = [of_layer.flatten(0, -2) for of_layer in self.all_features(model, inputs)]
        else:
            made = self._given_to_projectors(model, inputs)
        return {name: torch.stack(made, dim=1), **{name: inputs[name] for name in beside}}

    def names_kept(self, projected: bool) -> list[str]:
        return [FEATURES, *self.beside_features] if projected else [SEEN, *self.host_inputs]

    def project(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
        seen = inputs[SEEN]
        if not len(seen):
            inputs = self.smallest_picture(seen)
            seen = seen.new_zeros(len(inputs["pixel_values"]), *seen.shape[1:])
        layers = zip(self.projectors(model), seen.unbind(1), strict=True)
        return [self.put_in_order(model, projector(layer.contiguous()), inputs) for projector, layer in layers]

    def projectors(self, model: PreTrainedModel) -> list[nn.Module]:
        """Each makes features of what the vision tower has seen, (N, ...) with as many rows as there are of pixels:
        those of `image_features`, then any others."""
        [path] = self.parts["projector"]
        return [model.base_model.get_submodule(path)]

    def put_in_order(self, model: PreTrainedModel, projected: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """What a projector has made, as `image_features`; inputs has the batch's `host_inputs`."""
        return projected

    def _given_to_projectors(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Of each, in the pass that makes the features."""
        projectors = self.projectors(model)
        given: dict[nn.Module, Tensor] = {}

        def note(projector: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            given[projector] = arguments[0]

        hooks = [projector.register_forward_pre_hook(note) for projector in projectors]
        try:
            self.all_features(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return [given[projector] for projector in projectors]

    def vision_layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        tower = model.base_model.get_submodule(self.parts["vision_tower"][0])
        return [*max((module for module in tower.modules() if isinstance(module, nn.ModuleList)), key=len)]

    def further(self, at_image: Tensor, later: Sequence[Tensor]) -> Callable[[slice], dict[str, Any]]:
        """`Embedded.further`: at_image (B, T) bool, on the host if the tokens are there, and features that enter the
        language model later, on the device."""
        return nothing_further

    def at_images(self, input_ids: Tensor) -> Tensor:
        """(B, T) bool."""
        at_image: Tensor = input_ids == self.config.image_token_id
        return at_image
