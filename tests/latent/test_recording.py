"""CUDA graphs, where there is a GPU."""

import pytest
import torch

from multicoco.latent.recording import CudaRecorder, NotRecordable

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def test_a_replay_reads_what_is_there_then_and_writes_where_it_was_recorded():
    x = torch.ones(3, device="cuda")
    CudaRecorder().warm_up(lambda: (x + 1, x * 5))
    first, second = CudaRecorder().record(lambda: [x + 1], lambda: [x * 5])
    x.fill_(2)
    first.replay()
    second.replay()
    assert first.outputs[0].tolist() == 3 * [3.0] and second.outputs[0].tolist() == 3 * [10.0]


def test_what_waits_for_the_device_is_found_before_it_is_recorded():
    mode = torch.cuda.get_sync_debug_mode()
    with pytest.raises(NotRecordable, match="a layer waits for the device"):
        CudaRecorder().warm_up(lambda: torch.ones((), device="cuda").item())
    assert torch.cuda.get_sync_debug_mode() == mode


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        CudaRecorder().warm_up(lambda: torch.ones(2, 3, device="cuda") @ torch.ones(2, 3, device="cuda"))
