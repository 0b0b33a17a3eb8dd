import threading

import numpy as np
import pytest
import torch

from multicoco.training import thought_window
from multicoco.training.thought_window import ThoughtWindow

LATENT, WIDTH, LENGTH = 9, 6, 8


def micro_batch(n_thoughts: list[int], counted: list[bool] | None = None) -> dict:
    """Rows whose thoughts begin in the same column."""
    ids = torch.zeros(len(n_thoughts), LENGTH, dtype=torch.long)
    for row, n in enumerate(n_thoughts):
        ids[row, 3 : 3 + n] = LATENT
    return {"input_ids": ids, "counted": counted or [True] * len(n_thoughts)}


def thoughts(n_thoughts: list[int], seed: int = 0) -> torch.Tensor:
    """As the passes give them: 0 in rows that are not latent there."""
    most = max(n_thoughts)
    drawn = torch.randn(len(n_thoughts), most, WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn * (torch.arange(most) < torch.tensor(n_thoughts)[:, None])[..., None]


def expected(by_position: list[torch.Tensor]) -> dict:
    """By the definitions."""
    ranks = []
    for matrix in by_position:
        values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        shares = values / values.sum()
        ranks.append(np.exp(-(shares * np.log(shares)).sum()))
    norms = torch.cat(by_position).norm(dim=-1)
    return {
        "thoughts/norm": pytest.approx(float(norms.mean())),
        "thoughts/effective_rank": pytest.approx(np.mean(ranks)),
    }


def test_norm_and_effective_rank_of_the_thoughts_of_examples_that_count():
    counts = [2, 3, 0, 3, 2]
    fed = thoughts(counts)
    window = ThoughtWindow(LATENT, batch_size=5, accumulation=1)
    window.add([micro_batch(counts, [True, True, True, True, False])], [fed], skipped=False)
    window.add([micro_batch(counts)], [fed * torch.nan], skipped=True)
    assert window.read() == expected([fed[[0, 1, 3], 0], fed[[0, 1, 3], 1], fed[[1, 3], 2]])
    assert window.read() == {}  # begun anew, and nothing to tell


def test_thoughts_that_have_collapsed_are_of_rank_one():
    window = ThoughtWindow(LATENT, batch_size=4, accumulation=1)
    window.add([micro_batch([2] * 4)], [torch.ones(4, 2, WIDTH)], skipped=False)
    assert window.read() == {"thoughts/norm": pytest.approx(WIDTH**0.5), "thoughts/effective_rank": pytest.approx(1)}


def test_only_the_last_steps_count_and_of_a_large_one_the_first_examples(monkeypatch):
    monkeypatch.setattr(thought_window, "EXAMPLES", 6)
    steps = [[thoughts([1, 1], seed)] for seed in range(5)]
    window = ThoughtWindow(LATENT, batch_size=2, accumulation=1)
    for step in steps:
        window.add([micro_batch([1, 1])], step, skipped=False)
    assert window.read() == expected([torch.cat([fed[:, 0] for [fed] in steps[2:]])])
    window = ThoughtWindow(LATENT, batch_size=4, accumulation=3)
    parts = [thoughts([1] * 4, seed) for seed in range(3)]
    window.add([micro_batch([1] * 4)] * 3, parts, skipped=False)
    assert window.read() == expected([torch.cat(parts)[:6, 0]])


def test_the_same_on_any_number_of_ranks(monkeypatch):
    """Two threads that meet where ranks do; a global batch of 8, of which 7 examples count."""
    monkeypatch.setattr(thought_window, "EXAMPLES", 7)
    counts = [1, 2, 3, 2, 3, 1, 2, 3]
    pieces = [(counts[at : at + 2], thoughts(counts[at : at + 2], at)) for at in range(0, 8, 2)]
    alone = ThoughtWindow(LATENT, batch_size=2, accumulation=4)
    alone.add([micro_batch(piece) for piece, _ in pieces], [fed for _, fed in pieces], skipped=False)

    local, meeting, values, found = threading.local(), threading.Barrier(2, timeout=60), [None, None], [None, None]

    def gather(value):
        values[local.rank] = value
        meeting.wait()
        return list(values)

    one_rank = alone.read()
    monkeypatch.setattr(thought_window, "gather", gather)
    monkeypatch.setattr(thought_window, "rank", lambda: local.rank)
    monkeypatch.setattr(thought_window, "world_size", lambda: 2)

    def run(rank):
        local.rank = rank
        window, own = ThoughtWindow(LATENT, batch_size=2, accumulation=2), pieces[rank::2]
        window.add([micro_batch(piece) for piece, _ in own], [fed for _, fed in own], skipped=False)
        found[rank] = window.read()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == pytest.approx(one_rank) and found[1] == {}
    assert one_rank["thoughts/effective_rank"] > 1


def test_a_step_waits_for_nothing_and_methods_without_thoughts_tell_nothing():
    """On the meta device there are no values to wait for: whatever reads one fails."""
    window = ThoughtWindow(LATENT, batch_size=2, accumulation=1)
    window.add([micro_batch([2, 1])], [torch.empty(2, 2, WIDTH, device="meta")], skipped=False)
    without = ThoughtWindow(None, batch_size=2, accumulation=1)
    without.add([micro_batch([0, 0])], [torch.empty(2, 0, WIDTH)], skipped=False)
    assert without.read() == {}
    window = ThoughtWindow(LATENT, batch_size=2, accumulation=1)  # a stage without thoughts yet
    window.add([micro_batch([0, 0])], [torch.empty(2, 0, WIDTH)], skipped=False)
    assert window.read() == {}
