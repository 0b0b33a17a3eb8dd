"""The ways in which others write a step and an answer with latent thoughts, around any transformers model.

All of them are given the model's parts and the input embeddings with image features in place, so that what is compared
is the passes alone. Latent columns are the `latents` ones behind the first `prefix`; every row has them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


@dataclass
class Task:
    """A model and a batch for it: input_ids, labels (B, T), and what else `LatentReasoner.forward` takes."""

    model: PreTrainedModel
    inputs: dict[str, Tensor]
    prefix: int
    latents: int

    def embeds(self) -> Tensor:
        """(B, T, D), the images encoded once."""
        ids = self.inputs["input_ids"]
        embeds: Tensor = self.model.get_input_embeddings()(ids)
        if "pixel_values" not in self.inputs:
            return embeds
        features = self.model.get_image_features(self.inputs["pixel_values"], return_dict=True).pooler_output
        return embeds.masked_scatter((ids == self.model.config.image_token_id)[..., None], features.to(embeds))

    @property
    def columns(self) -> range:
        return range(self.prefix, self.prefix + self.latents)

    def run(self, embeds: Tensor, **options) -> Tensor:
        """Last hidden states of columns, without a cache or with one."""
        return self.model.get_decoder()(inputs_embeds=embeds, **{"use_cache": False, **options}).last_hidden_state

    def loss(self, hidden: Tensor) -> Tensor:
        """Logits of all columns, as transformers and these ways have them."""
        logits, labels = self.model.get_output_embeddings()(hidden), self.inputs["labels"]
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def fill(embeds: Tensor, column: int, thought: Tensor) -> Tensor:
    return torch.cat([embeds[:, :column], thought[:, None], embeds[:, column + 1 :]], dim=1)


def dynamic_cache(task: Task) -> Tensor:
    """As it is usually written: pass by pass with transformers' cache, and the logits of every pass."""
    embeds, cache, hidden = task.embeds(), DynamicCache(), []
    starts = [0, *task.columns]
    for start, end in zip(starts, [*starts[1:], embeds.shape[1]], strict=True):
        part = embeds[:, start:end]
        if start:
            part = torch.cat([hidden[-1][:, -1:], part[:, 1:]], dim=1)
        hidden.append(task.run(part, past_key_values=cache, use_cache=True))
    return task.loss(torch.cat(hidden, dim=1))


def detached_then_whole(task: Task) -> Tensor:
    """Monet's (arXiv:2511.21395): thoughts are made first, from a cache and as constants, then the whole sequence runs
    once more with them in place."""
    with torch.no_grad():
        thoughts = think(task, task.embeds())
    embeds = task.embeds()
    for column, thought in zip(task.columns, thoughts, strict=True):
        embeds = fill(embeds, column, thought)
    return task.loss(task.run(embeds))


def think(task: Task, embeds: Tensor) -> list[Tensor]:
    """(B, D) for each latent column, from a cache."""
    cache = DynamicCache()
    hidden, thoughts = task.run(embeds[:, : task.prefix], past_key_values=cache, use_cache=True)[:, -1], []
    for _ in task.columns:
        thoughts.append(hidden)
        hidden = task.run(hidden[:, None], past_key_values=cache, use_cache=True)[:, -1]
    return thoughts


def prefix_again(task: Task) -> Tensor:
    """IVT-LR's: everything before a thought runs again for each of them."""
    return task.loss(task.run(recomputed(task, task.embeds())))


def recomputed(task: Task, embeds: Tensor) -> Tensor:
    for column in task.columns:
        embeds = fill(embeds, column, task.run(embeds[:, :column])[:, -1])
    return embeds


def answer_without_cache(task: Task, new: int) -> Tensor:
    """(B, new): greedy, the whole sequence again for every thought and every word."""
    embeds, words = recomputed(task, task.embeds()), []
    for _ in range(new):
        words.append(task.model.get_output_embeddings()(task.run(embeds)[:, -1]).argmax(-1))
        embeds = torch.cat([embeds, task.model.get_input_embeddings()(words[-1])[:, None]], dim=1)
    return torch.stack(words, dim=1)


STEPS: dict[str, Callable[[Task], Tensor]] = {
    "dynamic cache": dynamic_cache,
    "detached, then whole": detached_then_whole,
    "prefix again": prefix_again,
}
