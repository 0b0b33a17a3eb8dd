"""What columns of a sequence attend to.

The attention of the latent passes keeps no weights. But once all thoughts are known, the sequence is one causal pass
over what was fed: its weights are those of that pass, run with transformers' eager attention, which gives them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from multicoco.latent.cache import ATTENTION_NAME
from multicoco.latent.passes import Passes


@dataclass(frozen=True)
class Attention:
    """Of Q columns of one sequence to its T columns; fp32, on the CPU, with rows that sum to 1.

    Attributes:
        last: (Q, T) weights of the last layer, the mean over its heads.
        rollout: (Q, T) the layers' means over heads, half of each being the column itself (the residual connection),
            multiplied with each other (Abnar & Zuidema 2020, arXiv:2005.00928, section 3).
    """

    last: Tensor
    rollout: Tensor


@torch.no_grad()
def attention_from(decoder: PreTrainedModel, passes: Passes, attention_mask: Tensor, columns: Tensor) -> Attention:
    """Runs a sequence of batch size 1 again, which takes layers x heads x T x T numbers.

    Args:
        attention_mask: (1, T).
        columns: (Q,) whose attention it is.
    """
    decoder.set_attn_implementation("eager")
    try:
        weights = decoder(
            inputs_embeds=passes.embeds,
            attention_mask=attention_mask,
            position_ids=passes.position_ids,
            use_cache=False,
            output_attentions=True,
            **passes.further(slice(0, passes.embeds.shape[1])),
        ).attentions
    finally:
        decoder.set_attn_implementation(ATTENTION_NAME)
    of_layers = [layer[0].float().mean(0) for layer in weights]  # [T, T] each
    rollout = torch.eye(len(of_layers[0]), device=columns.device)[columns]
    for layer in reversed(of_layers):
        rollout = (rollout + rollout @ layer) / 2
    return Attention(of_layers[-1][columns].cpu(), rollout.cpu())
