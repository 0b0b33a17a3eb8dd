"""Batches with supervision, made of examples as training makes them; and a row alone, in plain PyTorch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from reference import IMAGE, IMAGE_TOKENS, LATENT, PAD, SIGHTED
from torch import Tensor
from transformers import PreTrainedModel

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.collate import Collator, Row
from multicoco.latent.reasoner import LatentOutput, LatentReasoner
from multicoco.latent.thoughts import Projection
from multicoco.methods import Method, method_class
from multicoco.methods.thinking import thinking_model

TOKENS = LatentTokens(58, LATENT, 59)
IDS = "abcd"
GRIDS = ((4, 6), (2, 2), (6, 4), (2, 8))  # patches of a Qwen's pictures, 2 x 2 of which are a token


def make_method(name: str, **sections: Any) -> Method:
    coconut = {"enabled": True, "c_thought": 2, "max_latent_stage": 2, **sections.pop("coconut", {})}
    keys = {"name": "run", "model_id": "m", "mode": "train", "train_path": "t", "num_epochs": 9, "method": name}
    return method_class(name)(RunConfig(**keys, coconut=coconut, **sections), TOKENS)


def make_examples(model_name: str) -> list[ExampleTokens]:
    """Four, of 3, 1, 0 and 2 steps; the answer's first token announces it."""
    rng = torch.Generator().manual_seed(11)

    def words(n: int) -> list[int]:
        return torch.randint(0, 58, (n,), generator=rng).tolist()

    lengths = ((4, (3, 1, 2), 3), (2, (4,), 2), (3, (), 3), (5, (1, 2), 4))
    return [
        ExampleTokens(
            [*[IMAGE] * image_tokens(model_name, i), *words(prompt)],
            [words(n) for n in steps],
            words(answer),
            answer_prefix=1,
        )
        for i, (prompt, steps, answer) in enumerate(lengths)
    ]


def image_tokens(model_name: str, i: int) -> int:
    """Of an example's picture."""
    if model_name.startswith("qwen") and model_name in SIGHTED:
        return math.prod(GRIDS[i]) // 4
    if model_name == "llava_onevision":  # it shows an image as a whole and as a tile
        return 36
    return IMAGE_TOKENS * (model_name in SIGHTED)


def picture(model_name: str, i: int, rng: torch.Generator) -> dict[str, Tensor]:
    """The inputs of an example's picture; none for a model that does not see."""
    if not image_tokens(model_name, i):
        return {}
    if model_name.startswith("qwen"):
        pixels = torch.randn(math.prod(GRIDS[i]), 3 * 2 * 14 * 14, generator=rng, dtype=torch.float64)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, *GRIDS[i]]])}
    n_tiles, lie = 1, {}
    if model_name == "llava_onevision":
        n_tiles, lie = 2, {"image_sizes": torch.tensor([[56, 56]]), "batch_num_images": torch.tensor([1])}
    return {"pixel_values": torch.randn(n_tiles, 3, 56, 56, generator=rng, dtype=torch.float64), **lie}


def make_rows(method: Method, model_name: str, stage: int, filler: int | None = None) -> list[Row]:
    """The examples in a stage, with pictures for a model that sees; one of them may be a filler that does not count."""
    rng = torch.Generator().manual_seed(12)
    rows = []
    for i, tokens in enumerate(make_examples(model_name)):
        supervision, counted = method.supervision(tokens, stage, 0, IDS[i]), i != filler
        row = method.train_row(tokens, stage, 0, IDS[i])
        rows.append(Row(*row, i, counted, picture(model_name, i, rng), supervision=supervision))
    return rows


def make_reasoner(method: Method, model: PreTrainedModel) -> LatentReasoner:
    return thinking_model(method, model, LATENT)


def training_loss(method: Method, reasoner: LatentReasoner, rows: Sequence[Row], stage: int) -> Tensor:
    """As of an optimizer step over these rows alone."""
    return training_output(method, reasoner, rows, stage).loss


def training_output(
    method: Method, reasoner: LatentReasoner, rows: Sequence[Row], stage: int, on_host: bool = True
) -> LatentOutput:
    """Args: on_host: whether the reasoner is given what it may read on the host."""
    n_passes = method.passes(stage)
    batch = Collator(PAD, LATENT if n_passes > 1 else None, reasoner.family.batch, min_length=n_passes)(rows)
    labelled = int((batch["labels"][:, 1:] != -100).sum())
    tokens = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    supervision = {key: x for key, x in batch["supervision"].items() if isinstance(x, Tensor)}
    return reasoner(
        **tokens,
        on_host=tokens | supervision if on_host else None,
        **batch["inputs"],
        n_passes=n_passes,
        loss_divisor=labelled,
        supervision=batch["supervision"] | {"divisors": torch.tensor(method.counts(batch)).clamp(min=1)},
    )


@dataclass
class Alone:
    """A row without padding.

    Attributes:
        embeds: (D,) each, of its columns; thoughts are put there once they are made.
        latent: the columns of these.
        positions: (3, 1, T) of a model that counts along several axes.
    """

    model: PreTrainedModel
    embeds: list[Tensor]
    latent: list[int]
    positions: Tensor | None

    def think(self, projection: Projection | None) -> list[Tensor]:
        """The thoughts, (D,) each, one after the other."""
        for column in self.latent:
            hidden = self.layers(column)[-1][-1]
            self.embeds[column] = hidden if projection is None else projection(hidden)
        return [self.embeds[column] for column in self.latent]

    def layers(self, end: int | None = None) -> list[Tensor]:
        """(T, D) each: what every layer of the language model gives of the columns up to `end`, the last one's after
        the last norm."""
        seen: list[Tensor] = []
        decoder, given = self.model.get_decoder(), {}
        hooks = [layer.register_forward_hook(lambda module, args, out: seen.append(out[0])) for layer in decoder.layers]
        if self.positions is not None:
            given["position_ids"] = self.positions[..., :end]
        last = decoder(inputs_embeds=torch.stack(self.embeds[:end])[None], use_cache=False, **given).last_hidden_state
        for hook in hooks:
            hook.remove()
        return [*seen[:-1], last[0]]


def alone(model: PreTrainedModel, ids: Sequence[int], inputs: dict[str, Tensor]) -> Alone:
    """A row as it is fed before there are thoughts, an image's features in place."""
    embeds, positions = [*model.get_input_embeddings()(torch.tensor(ids))], None
    if inputs:
        features = model.get_image_features(**inputs, return_dict=True).pooler_output
        features = torch.cat([*features]).flatten(0, -2)  # a tensor, or one for each image
        places = [i for i, token in enumerate(ids) if token == IMAGE]
        for place, feature in zip(places, features, strict=True):
            embeds[place] = feature
    if "image_grid_thw" in inputs:
        kinds = (torch.tensor([ids]) == IMAGE).int()
        positions, _ = model.model.get_rope_index(torch.tensor([ids]), kinds, inputs["image_grid_thw"])
    return Alone(model, embeds, [i for i, token in enumerate(ids) if token == LATENT], positions)
