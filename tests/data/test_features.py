from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multicoco.data.collate import ImageInputs
from multicoco.data.features import FEATURES, KEY, FeatureStore, images_key
from multicoco.data.verified import digest_of
from multicoco.errors import UserError

KEYS = [images_key([digest_of(bytes([i]))]) for i in range(9)]


def kept(i: int) -> dict[str, torch.Tensor]:
    return {FEATURES: torch.full((i + 1, 2, 3), i, dtype=torch.bfloat16), "grid": torch.tensor([[1, i, i]])}


def write(store: FeatureStore, places: list[int]) -> None:
    written = {KEYS[i]: [i] if i % 2 else [(i, i), (i, i)] for i in places}
    store.write({KEYS[i]: kept(i) for i in places}, written)


@settings(max_examples=15)
@given(jobs=st.lists(st.lists(st.integers(0, 8), min_size=1, unique=True), max_size=6))
def test_what_any_job_has_written_is_found_by_all_and_as_it_was(tmp_path_factory, jobs):
    folder = tmp_path_factory.mktemp("store")
    stores = [FeatureStore(folder, [FEATURES, "grid"]) for _ in jobs] or [FeatureStore(folder, [FEATURES, "grid"])]
    for store, places in zip(stores, jobs, strict=False):
        write(store, places)
    for store in stores:
        store.look()
        there = {i for places in jobs for i in places}
        assert store.missing(np.array(KEYS, KEY)).astype(str).tolist() == [
            k for i, k in enumerate(KEYS) if i not in there
        ]
        for i in there:
            found = store.read(KEYS[i])
            assert all(torch.equal(found[name], tensor) for name, tensor in kept(i).items())
            assert found[FEATURES].dtype == torch.bfloat16


def test_images_of_an_example_are_known_by_their_content_together(tmp_path):
    store = FeatureStore(tmp_path, [FEATURES, "grid"])
    write(store, [1, 2])
    pair = images_key([digest_of(bytes([1])), digest_of(bytes([2]))])
    store.write({pair: kept(5)}, {pair: [3, 4]})
    (tmp_path / "a.png").write_bytes(bytes([2]))
    store.look()
    assert store.read_images([bytes([1])]).tokens == [1] and store.read_images([bytes([2])]).tokens == [[2, 2], [2, 2]]
    both = store.read_images([bytes([1]), tmp_path / "a.png"])
    assert (
        both.tokens == [3, 4]
        and both.tensors["grid"].tolist() == [[1, 5, 5]]
        and set(both.tensors) == {FEATURES, "grid"}
    )
    assert store.read_images([]) == ImageInputs()
    with pytest.raises(UserError, match=r"a\.png, an image: changed"):
        store.read_images([tmp_path / "a.png", bytes([1])])  # in another order
    (tmp_path / "a.png").write_bytes(bytes([3]))
    with pytest.raises(UserError, match=r"a\.png: changed"):
        store.read_images([tmp_path / "a.png"])
    with pytest.raises(UserError, match=r"gone\.png: cannot be read as an image"):
        store.read_images([tmp_path / "gone.png"])


def test_a_damaged_file_is_as_none_and_one_that_goes_is_named(tmp_path):
    store = FeatureStore(tmp_path, [FEATURES, "grid"])
    write(store, [0])
    [path] = tmp_path.iterdir()
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:50])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    store.look()
    assert store.missing(np.array(KEYS[:2], KEY)).astype(str).tolist() == [KEYS[1]]
    path.unlink()
    with pytest.raises(UserError, match="has gone or is damaged"):
        store.read(KEYS[0])


def test_of_what_cannot_be_written_nothing_is_left(tmp_path, monkeypatch):
    def fail(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multicoco.data.features.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        write(FeatureStore(tmp_path, [FEATURES]), [0])
    assert not list(tmp_path.iterdir())
