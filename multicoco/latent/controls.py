"""What latent positions are fed in controls: runs that tell what Coconut's thoughts are worth (docs/controls.md)."""

import torch
from torch import Tensor, nn

from multicoco.latent.thoughts import put


def another_rows(hidden: Tensor, k: Tensor) -> Tensor:
    """(B, C, D) -> (B, C, D): the hidden states of the batch's second half, the donors, who are fed their own."""
    donors = hidden[len(hidden) // 2 :]
    return torch.cat([donors, donors])


class GaussianThoughts:
    """Latent positions hold random vectors that have the mean and the norm of the model's hidden states.

    These leave the model's last norm, which decides both: z of unit variance becomes weight * z + bias. So standard
    Gaussian vectors are sent through that norm. No state: new weights give new noise, and nothing is to be saved.

    Args:
        latent_token_id: where they stand.
        most: vectors drawn for a row; it has no more thoughts.
        decoder: the language model without its head.

    Raises:
        ValueError: its hidden states leave no norm.
    """

    def __init__(self, latent_token_id: int, most: int, decoder: nn.Module):
        self.latent_token_id = latent_token_id
        self.most = most
        self.norm = last_norm(decoder)

    def __call__(self, embeds: Tensor, input_ids: Tensor, seeds: Tensor | None) -> Tensor:
        """embeds (B, T, D) with the latent positions filled in.

        Args:
            seeds: (B,), on the CPU: a row's vectors are a function of its own, whatever batch, rank or device it is on.

        Raises:
            ValueError: there are none.
        """
        if seeds is None:
            raise ValueError("thoughts of noise are drawn from `seeds`, one for each row")
        drawn = [
            torch.randn(self.most, embeds.shape[-1], generator=torch.Generator().manual_seed(seed))
            for seed in seeds.tolist()
        ]
        with torch.no_grad():
            noise = self.norm(torch.stack(drawn).to(embeds, non_blocking=True))  # [B, most, D]
        return put(embeds, input_ids == self.latent_token_id, noise)


def last_norm(decoder: nn.Module) -> nn.Module:
    """The norm that the hidden states of a language model leave.

    Raises:
        ValueError: there is none outside of its layers.
    """
    found: list[nn.Module] = [
        module
        for name, module in decoder.named_modules()
        if "norm" in type(module).__name__.lower() and not any(part.isdigit() for part in name.split("."))
    ]
    if not found:
        raise ValueError("thoughts of noise need a norm at the end of the language model, whose scale they take")
    return found[-1]
