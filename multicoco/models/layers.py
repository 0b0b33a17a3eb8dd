"""The layers of a language model, whatever it calls them: `layers`, or `h` in GPT-2."""

from torch import nn
from transformers import PreTrainedModel


def find_layers(decoder: nn.Module, n_layers: int) -> tuple[str, nn.ModuleList]:
    """The list of a decoder's layers, and its name.

    Raises:
        ValueError: there is not one list of so many.
    """
    lists = {name: part for name, part in decoder.named_children() if isinstance(part, nn.ModuleList)}
    found = [(name, part) for name, part in lists.items() if len(part) == n_layers]
    if len(found) != 1:
        raise ValueError(f"its decoder has {len(found)} lists of {n_layers} layers, where one is expected")
    return found[0]


def keep_first_layers(decoder: PreTrainedModel, n: int) -> None:
    """Leaves a decoder its first n layers; what follows them stays.

    Raises:
        ValueError: it has fewer, or it is not known where they are.
    """
    config = decoder.config
    if n > config.num_hidden_layers:
        raise ValueError(f"the first {n} layers are asked for, it has {config.num_hidden_layers}")
    name, layers = find_layers(decoder, config.num_hidden_layers)
    setattr(decoder, name, layers[:n])
    config.num_hidden_layers = n
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:n]
