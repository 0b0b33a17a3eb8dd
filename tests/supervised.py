"""Batches with supervision, made of examples as training makes them; and a row alone, in plain PyTorch."""

from collections.abc import Sequence
from typing import Any

import torch
from reference import IMAGE, IMAGE_TOKENS, LATENT, PAD, SIGHTED
from torch import Tensor
from transformers import PreTrainedModel

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.collate import Collator, Row
from multicoco.latent.reasoner import LatentOutput, LatentReasoner
from multicoco.methods import Method, method_class
from multicoco.methods.thinking import thinking_model

TOKENS = LatentTokens(58, LATENT, 59)
IDS = "abcd"


def make_method(name: str, **sections: Any) -> Method:
    coconut = {"enabled": True, "c_thought": 2, "max_latent_stage": 2, **sections.pop("coconut", {})}
    keys = {"name": "run", "model_id": "m", "mode": "train", "train_path": "t", "num_epochs": 9, "method": name}
    return method_class(name)(RunConfig(**keys, coconut=coconut, **sections), TOKENS)


def make_examples(model_name: str) -> list[ExampleTokens]:
    """Four, of 3, 1, 0 and 2 steps; the answer's first token announces it."""
    rng = torch.Generator().manual_seed(11)

    def words(n: int) -> list[int]:
        return torch.randint(0, 58, (n,), generator=rng).tolist()

    n_image = {"llava_onevision": 36}.get(model_name, IMAGE_TOKENS)  # it shows an image as a whole and as a tile
    image = [IMAGE] * n_image * (model_name in SIGHTED)
    lengths = ((4, (3, 1, 2), 3), (2, (4,), 2), (3, (), 3), (5, (1, 2), 4))
    return [
        ExampleTokens([*image, *words(prompt)], [words(n) for n in steps], words(answer), answer_prefix=1)
        for prompt, steps, answer in lengths
    ]


def make_rows(method: Method, model_name: str, stage: int, filler: int | None = None) -> list[Row]:
    """The examples in a stage, with pictures for a model that sees; one of them may be a filler that does not count."""
    rng = torch.Generator().manual_seed(12)
    rows = []
    for i, tokens in enumerate(make_examples(model_name)):
        supervision, counted = method.supervision(tokens, stage, 0, IDS[i]), i != filler
        inputs = make_picture(model_name, rng) if model_name in SIGHTED else {}
        row = method.train_row(tokens, stage, 0, IDS[i])
        rows.append(Row(*row, i, counted, inputs, supervision=supervision))
    return rows


def make_picture(model_name: str, rng: torch.Generator) -> dict[str, Tensor]:
    """A square of 56 pixels, as the model takes it."""
    if model_name.startswith("qwen"):  # of 4 x 4 patches
        pixels = torch.randn(16, 3 * 2 * 14 * 14, generator=rng, dtype=torch.float64)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]])}
    n_tiles, lie = 1, {}
    if model_name == "llava_onevision":
        n_tiles, lie = 2, {"image_sizes": torch.tensor([[56, 56]]), "batch_num_images": torch.tensor([1])}
    return {"pixel_values": torch.randn(n_tiles, 3, 56, 56, generator=rng, dtype=torch.float64), **lie}


def make_reasoner(method: Method, model: PreTrainedModel) -> LatentReasoner:
    return thinking_model(method, model, LATENT)


def training_loss(method: Method, reasoner: LatentReasoner, rows: Sequence[Row], stage: int) -> Tensor:
    """As of an optimizer step over these rows alone."""
    return training_output(method, reasoner, rows, stage).loss


def training_output(method: Method, reasoner: LatentReasoner, rows: Sequence[Row], stage: int) -> LatentOutput:
    batch = Collator(PAD, LATENT, reasoner.family.batch, min_length=method.passes(stage))(rows)
    labelled = int((batch["labels"][:, 1:] != -100).sum())
    tokens = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    return reasoner(
        **tokens,
        on_host=tokens,
        **batch["inputs"],
        n_passes=method.passes(stage),
        loss_divisor=labelled,
        supervision=batch["supervision"] | {"divisors": torch.tensor(method.counts(batch)).clamp(min=1)},
    )


def embedded(model: PreTrainedModel, ids: Sequence[int], inputs: dict[str, Tensor]) -> list[Tensor]:
    """What a row's tokens are fed as, an image's features in place."""
    embeds = [*model.get_input_embeddings()(torch.tensor(ids))]
    if inputs:
        features = model.get_image_features(**inputs, return_dict=True).pooler_output.flatten(0, -2)
        places = [i for i, token in enumerate(ids) if token == IMAGE]
        for place, feature in zip(places, features, strict=True):
            embeds[place] = feature
    return embeds


def layers_of(model: PreTrainedModel, embeds: Sequence[Tensor]) -> list[Tensor]:
    """(T, D) each: what every layer of the language model gives of a row, the last one's after the last norm."""
    seen: list[Tensor] = []
    decoder = model.get_decoder()
    hooks = [layer.register_forward_hook(lambda module, args, out: seen.append(out[0])) for layer in decoder.layers]
    last = decoder(inputs_embeds=torch.stack(list(embeds))[None], use_cache=False).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    return [*seen[:-1], last]
