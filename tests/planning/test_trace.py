import pytest
import torch
from reference import internvl, llama, qwen2
from torch import nn

from multicoco.planning.trace import LiveBytes, Tracer

NOTHING = dict.fromkeys(("vision_tower", "projector", "language_model"), False)
ROWS, COLUMNS = 2, 5


def test_live_bytes_are_those_of_the_tensors_that_are_alive():
    weight = nn.Parameter(torch.empty(8, 4, device="meta"))
    x = torch.empty(16, 4, device="meta")
    with LiveBytes() as counted:
        hidden = (x @ weight.T).exp()  # [16, 8], exp keeps its result; the product goes
        assert (counted.live, counted.peak) == (16 * 8 * 4, 2 * 16 * 8 * 4)
        hidden.sum().backward()
        del hidden
        assert counted.live == weight.grad.nbytes
    assert counted.kernels > 3  # views are none


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [qwen2, llama, internvl])
def test_a_checkpointed_layer_keeps_its_input_alone(build, dtype):
    tracer = Tracer(build().config, dtype, NOTHING)
    width = tracer.config.get_text_config().hidden_size
    kept, recomputed = tracer.decoder(ROWS, COLUMNS, False), tracer.decoder(ROWS, COLUMNS, True)
    assert recomputed.saved == ROWS * COLUMNS * width * dtype.itemsize < kept.saved
    assert recomputed.backward > kept.backward and recomputed.backward_kernels > kept.backward_kernels


def test_what_a_layer_keeps_grows_with_its_columns_and_not_with_their_square():
    tracer = Tracer(qwen2().config, torch.float32, NOTHING)
    one, ten = tracer.decoder(ROWS, COLUMNS, False), tracer.decoder(ROWS, 10 * COLUMNS, False)
    assert ten.saved == 10 * one.saved


def test_a_frozen_vision_tower_keeps_nothing_and_has_no_backward():
    tracer = Tracer(internvl().config, torch.float32, NOTHING | {"vision_tower": True})
    for checkpointing in (False, True):
        trace = tracer.vision(1, checkpointing)
        assert trace.saved == 0 == trace.backward_kernels
    assert Tracer(tracer.config, torch.float32, NOTHING).vision(1, False).saved > 0


def test_the_loss_keeps_no_logits():
    tracer = Tracer(qwen2().config, torch.float32, NOTHING)
    logits = 100 * tracer.config.vocab_size * 4
    assert tracer.loss(100).saved < logits <= tracer.loss(100).forward
