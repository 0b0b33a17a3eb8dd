import pytest
import torch
from torch import Tensor

from multicoco.training.transfer import Transfer


def batch(number: int) -> dict:
    tokens = {key: torch.full((1, 2), number) for key in ("input_ids", "attention_mask", "labels")}
    inputs = {"pixel_values": torch.full((1,), float(number)), "image_grid_thw": torch.full((1, 3), number)}
    return {**tokens, "inputs": inputs, "seeds": torch.tensor([number]), "supervision": {}, "index": [number]}


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_the_next_batch_is_sent_before_a_step_is_given_out(monkeypatch, n):
    calls = []
    monkeypatch.setattr(torch.cpu.Stream, "wait_stream", lambda self, other: calls.append("wait for steps"))
    monkeypatch.setattr(torch.cpu.Stream, "record_event", lambda self: calls.append("sent"))
    monkeypatch.setattr(torch.cpu.Stream, "wait_event", lambda self, event: calls.append("wait for batch"))
    given = []
    for micro_batches in Transfer(torch.device("cpu"), ()).ahead([[batch(i)] for i in range(n)]):
        given.append(micro_batches[0]["index"])
        calls.append("step")
    send, give = ["wait for steps", "sent"], ["wait for batch", "step"]
    assert given == [[i] for i in range(n)]
    assert calls == (send + (send + give) * (n - 1) + give if n else [])


def test_what_is_sent_is_what_the_passes_take(monkeypatch):
    moved = []
    to = Tensor.to

    def noted(tensor, *args, **kwargs):
        moved.append((id(tensor), kwargs))
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", noted)
    asked = batch(3) | {"supervision": {"announced": torch.tensor([1])}}
    [[sent]] = Transfer(torch.device("cpu"), ("image_grid_thw",)).ahead([[asked]])
    arguments = sent["on_device"]
    assert sent["index"] == [3] and arguments.keys() == {
        *("input_ids", "attention_mask", "labels", "pixel_values", "image_grid_thw", "seeds", "supervision", "on_host")
    }
    tokens = {key: asked[key] for key in ("input_ids", "attention_mask", "labels")}
    assert arguments["on_host"] == tokens | asked["supervision"]
    tensors = [*tokens.values()]
    tensors += [asked["inputs"]["pixel_values"], asked["supervision"]["announced"]]  # the grids are read on the host
    assert moved == [(id(tensor), {"non_blocking": True}) for tensor in tensors]
