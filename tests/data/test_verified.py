"""An image is decoded once: again only if it is another one, whatever its date says."""

import os

import numpy as np
import pytest
from PIL import Image

from multicoco.data import verified as verified_module
from multicoco.data.sources.location import Location
from multicoco.data.sources.tables import StoredInTable
from multicoco.data.verified import VerifiedImages, digest_of
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


def test_another_content_of_the_same_size_and_date_is_another_image(tmp_path, decoded):
    path = tmp_path / "a.bmp"
    Image.new("RGB", (4, 4), "red").save(path)
    red, blue = path.read_bytes(), path.read_bytes().replace(b"\x00\x00\xff", b"\xff\x00\x00")
    start(tmp_path, path)
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # its clock ticks every few milliseconds
        path.write_bytes(blue)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns) and red != blue
    assert VerifiedImages(tmp_path / "memory" / "images.npy").digest(path) == digest_of(blue)
    start(tmp_path, path)
    assert decoded == [path, path]


def test_a_file_is_read_for_its_digest_until_its_size_or_date_changes(tmp_path, picture, monkeypatch):
    read, read_bytes = [], type(picture).read_bytes
    monkeypatch.setattr(type(picture), "read_bytes", lambda path: read.append(path) or read_bytes(path))

    def digest() -> bytes:
        verified = VerifiedImages(tmp_path / "images.npy")
        found = verified.digest(picture)
        assert verified.digest(picture) == found  # without being told
        verified.save([verified.taken()])
        return found

    content = [picture.read_bytes(), picture.read_bytes() + b"more", picture.read_bytes()[:-1] + b"x"]
    read.clear()
    for times, of in enumerate(content, start=1):
        picture.write_bytes(of)
        os.utime(picture, ns=(times, times))
        assert [digest(), digest()] == [digest_of(of)] * 2 and len(read) == times
    os.utime(picture, ns=(9, 9))
    assert digest() == digest_of(content[-1]) and len(read) == 4
    monkeypatch.chdir(tmp_path.parent)  # the same file by another name
    same = picture.relative_to(tmp_path.parent)
    assert VerifiedImages(tmp_path / "images.npy").digest(same) == digest_of(content[-1])
    assert len(read) == 4
    picture.unlink()
    with pytest.raises(UserError, match=r"a\.png: cannot be read"):
        digest()


def test_what_is_learnt_is_known_and_what_is_verified_has_a_digest(tmp_path, picture, monkeypatch):
    first, second = VerifiedImages(tmp_path / "images.npy"), VerifiedImages(tmp_path / "images.npy")
    first.verify(picture)
    second.learn([first.taken()])
    monkeypatch.setattr(type(picture), "read_bytes", None)
    assert second.digest(picture) == digest_of(picture.open("rb").read()) and not (tmp_path / "images.npy").exists()
    assert second.digest(b"none") == digest_of(b"none") and not len(second.taken())


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
