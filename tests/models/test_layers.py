import pytest
import torch
from reference import windowed
from torch import nn
from transformers import GPT2Config, GPT2Model

from multicoco.models.layers import find_layers, keep_first_layers


def test_what_is_left_is_what_the_first_layers_compute():
    """Whatever they are called, and whichever of them have a window."""
    models = [windowed("gemma3_text").model, GPT2Model(GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=64))]
    ids = torch.arange(12)[None]
    for model in models:
        expected = model.eval()(ids, output_hidden_states=True).hidden_states[2]
        name, _ = find_layers(model, 3)
        keep_first_layers(model, 2)
        norm = next(part for key, part in model.named_children() if key in ("norm", "ln_f"))
        assert len(getattr(model, name)) == model.config.num_hidden_layers == 2
        torch.testing.assert_close(model(ids).last_hidden_state, norm(expected))


def test_a_model_whose_layers_are_not_found_is_refused():
    with pytest.raises(ValueError, match="0 lists of 3 layers"):
        find_layers(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1, 1)] * 2)}), 3)
