import pytest
import torch
from reference import internvl, llama, qwen2, rescaled
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


def test_capped_scores_are_needed_whole_for_a_moment_and_never_kept():
    """A cap is known to the reference kernel alone, which makes all scores of a segment in fp32."""
    tracer, plain = (
        Tracer(rescaled("gemma2", **caps).config, torch.bfloat16, NOTHING)
        for caps in ({}, {"attn_logit_softcapping": None, "final_logit_softcapping": None})
    )
    heads, columns = tracer.config.num_attention_heads, 200
    scores = ROWS * heads * columns * 4  # for each column that is attended to
    own, other = (each.decoder(ROWS, columns, False, 1000) for each in (tracer, plain))
    first = tracer.decoder(ROWS, columns, False)
    assert own.saved == first.saved and own.saved - other.saved <= ROWS * heads * columns * 8 * 2  # of the output again
    assert min(own.forward - other.forward, own.backward - other.backward) > 2 * scores * 1200
    assert own.forward - first.forward > 2 * scores * 1000 and own.backward > own.forward
    assert other == plain.decoder(ROWS, columns, False)
    assert tracer.loss(100).saved == plain.loss(100).saved < tracer.loss(100).backward
