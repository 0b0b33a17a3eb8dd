"""An image is decoded once: again only if it is another one, whatever its date says."""

import os

import numpy as np
import pytest
from PIL import Image

from multicoco.data import verified as verified_module
from multicoco.data.sources.location import Location
from multicoco.data.sources.tables import StoredInTable
from multicoco.data.verified import VerifiedImages
from multicoco.errors import UserError


@pytest.fixture
def decoded(monkeypatch):
    """The images that were decoded."""
    seen, load = [], verified_module.load_image
    monkeypatch.setattr(verified_module, "load_image", lambda image: (seen.append(image), load(image)))
    return seen


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(path)
    return path


def start(tmp_path, *images) -> None:
    """One start of a run that looks at images."""
    verified = VerifiedImages(tmp_path / "memory" / "images.npy")
    for image in images:
        verified.verify(image)
    verified.save([verified.taken()])
    assert [path.name for path in (tmp_path / "memory").iterdir()] == ["images.npy"]


def test_a_known_image_is_not_decoded_nor_is_a_copy_of_another_date(tmp_path, picture, decoded):
    start(tmp_path, picture)
    start(tmp_path, picture)
    os.utime(picture, ns=(1, 1))
    start(tmp_path, picture)
    start(tmp_path, picture)
    assert decoded == [picture]


def test_another_image_of_the_same_size_and_name_is_decoded(tmp_path, picture, decoded):
    start(tmp_path, picture)
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(content)
    os.utime(picture, ns=(1, 1))
    with pytest.raises(UserError, match=r"a\.png"):
        start(tmp_path, picture)
    with pytest.raises(UserError, match=r"a\.png"):  # what is bad is never remembered
        start(tmp_path, picture)
    picture.unlink()
    with pytest.raises(UserError, match=r"a\.png"):
        start(tmp_path, picture)


def test_runs_that_write_at_once_add_to_each_other(tmp_path, decoded):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        Image.new("RGB", (4, 4), "red").save(path)
    both = [VerifiedImages(tmp_path / "images.npy") for _ in range(2)]
    for verified, own in zip(both, (paths[:4], paths[2:]), strict=True):
        for path in own:
            verified.verify(path)
    for verified in both:
        verified.save([verified.taken(), verified.taken()])
    del decoded[:]
    again = VerifiedImages(tmp_path / "images.npy")
    for path in reversed(paths):
        again.verify(path)
    assert not decoded and not len(again.taken())


def test_images_of_a_table_are_known_with_the_table(tmp_path, picture, decoded, monkeypatch):
    monkeypatch.setattr(StoredInTable, "read", lambda self: picture.read_bytes())
    image = StoredInTable(Location("t.parquet"), 3, ("image", "bytes"))
    for content, times in (("one", 1), ("one", 1), ("other", 2)):
        verified = VerifiedImages(tmp_path / "images.npy", stored_in=content)
        verified.verify(image)
        verified.save([verified.taken()])
        assert len(decoded) == times


def test_a_broken_memory_is_none_and_one_that_cannot_be_written_costs_nothing(tmp_path, picture, decoded, capsys):
    (tmp_path / "images.npy").write_bytes(b"\x93NUMPY broken")
    verified = VerifiedImages(tmp_path / "images.npy")
    verified.verify(picture)
    (tmp_path / "file").write_text("in the way")
    elsewhere = VerifiedImages(tmp_path / "file" / "images.npy")
    elsewhere.save([verified.taken()])
    assert "cannot be written" in capsys.readouterr().out and len(decoded) == 1
    np.save(tmp_path / "images.npy", np.arange(3))
    VerifiedImages(tmp_path / "images.npy").verify(picture)
    assert len(decoded) == 2
