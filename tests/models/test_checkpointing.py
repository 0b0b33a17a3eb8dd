import pytest
import torch
from reference import IMAGE, IMAGE_TOKENS, internvl

from multicoco.models.checkpointing import checkpoint_activations
from multicoco.models.freezing import freeze


@pytest.mark.parametrize(("frozen", "vision_calls"), [(False, 2), (True, 1)])
def test_only_what_backward_reaches_is_computed_again(frozen, vision_calls):
    model = internvl().train()
    freeze(model, vision_tower=frozen)
    checkpoint_activations(model)
    calls = {"vision": 0, "text": 0}

    def count(part, layer):
        layer.register_forward_pre_hook(lambda *_: calls.update({part: calls[part] + 1}))

    count("vision", model.model.vision_tower.encoder.layer[0].attention)
    count("text", model.get_decoder().layers[0].self_attn)
    ids = torch.tensor([[IMAGE] * IMAGE_TOKENS + [1, 2, 3]])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, 56, 56), labels=ids).loss.backward()
    assert calls == {"vision": vision_calls, "text": 2}
