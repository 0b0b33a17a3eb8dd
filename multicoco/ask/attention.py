"""What the thoughts of a question attend to: in a pass of its own, after those that thought them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multicoco.data.example import load_image
from multicoco.data.loader import ReasoningDataset
from multicoco.engine.assembly import Assembly
from multicoco.errors import UserError
from multicoco.evaluation.asking import Asking
from multicoco.latent.attention import attention_from

_MOST_NUMBERS = 4_000_000_000  # of all layers and heads


@dataclass(frozen=True)
class Seen:
    """What one thought attends to.

    Attributes:
        share: of its attention in the last layer, what is on pictures, their tiles included.
        last, rollout: of each picture, rows x columns over the whole of it: the weights of `latent.attention`, whose
            rest is on tiles, on text and on other thoughts; [] where the family does not say how its tokens lie.
    """

    share: float
    last: list[list[list[float]]]
    rollout: list[list[list[float]]]


def look(assembly: Assembly, asking: Asking, device: torch.device) -> list[Seen]:
    """Of each thought of the first question.

    Raises:
        UserError: it is too long for that.
    """
    [example], encoder, reasoner = asking.questions[:1], assembly.encoder, assembly.reasoner
    family, method = assembly.backbone.family, asking.method
    row = ReasoningDataset([example], encoder, method.asked, asking.row)[0, True]
    input_ids = torch.tensor([row.input_ids], device=device)
    config, length = reasoner.decoder.config, input_ids.shape[1]
    if config.num_hidden_layers * config.num_attention_heads * length**2 > _MOST_NUMBERS:
        raise UserError(f"the question has {length} tokens, too many for the attention of all layers and heads")
    mask = torch.ones_like(input_ids)
    inputs: dict[str, Any] = {name: tensor.to(device) for name, tensor in family.batch([row.inputs]).items()}
    with torch.no_grad():
        passes = reasoner.run_passes(input_ids, mask, n_passes=asking.passes, seeds=torch.tensor([row.seed]), **inputs)
    assert method.latent_tokens is not None  # it has thoughts
    thoughts = (input_ids[0] == method.latent_tokens.latent).nonzero()[:, 0]
    attention = attention_from(reasoner.decoder, passes, mask, thoughts)
    images = family.read_images([load_image(image) for image in example.images], assembly.backbone.image_processor)
    columns: list[Tensor] = []
    if example.images:
        columns = family.columns_of_images(input_ids[0].cpu(), images.tokens, assembly.backbone.tokenizer)
    laid_out = [family.laid_out(of, images.tensors, number) for number, of in enumerate(columns)]

    def maps(weights: Tensor) -> list[list[list[float]]]:
        """(T,), of each picture over the whole of it."""
        return [[] if of is None else weights[of].tolist() for of in laid_out]

    return [
        Seen(float(sum(last[of].sum() for of in columns)), maps(last), maps(rollout))
        for last, rollout in zip(attention.last, attention.rollout, strict=True)
    ]
