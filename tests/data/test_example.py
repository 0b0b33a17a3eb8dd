import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from multicoco.data.example import IMAGE_FORMATS, Example, load_image
from multicoco.errors import UserError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def corners(path: Path) -> list[tuple[int, int, int]]:
    """Top left and bottom right pixel of the loaded image."""
    image = load_image(path)
    assert image.mode == "RGB"
    return [image.getpixel((0, 0)), image.getpixel((image.width - 1, image.height - 1))]


def two_colours(mode: str, first, second) -> Image.Image:
    """32 x 16, the left half of one colour and the right half of another."""
    image = Image.new(mode, (32, 16), second)
    image.paste(first, (0, 0, 16, 16))
    return image


def test_examples_without_images_and_with_several():
    assert Example("0", "Which?", None, (), (), "red", None).images == ()
    example = Example("0", "Which?", [Path("a.png"), b"file"], (), (), "red", None, ())
    assert (example.image, example.images, example.judge) == (Path("a.png"), (Path("a.png"), b"file"), "text")
    assert Example("0", "Which?", None, (), (), None, None).image is None


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_formats_whatever_the_name_and_as_bytes(tmp_path, image_format):
    path = save(two_colours("RGB", RED, BLUE), tmp_path / "image.txt", format=image_format)
    assert np.allclose(corners(path), [RED, BLUE], atol=5)
    assert np.array_equal(np.asarray(load_image(path.read_bytes())), np.asarray(load_image(path)))


def test_a_picture_of_several_frames_for_a_viewer_in_depth(tmp_path):
    path = save(two_colours("RGB", RED, BLUE), tmp_path / "image.mpo", save_all=True)
    assert np.allclose(corners(path), [RED, BLUE], atol=5)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (two_colours("L", 10, 200), "png", [(10, 10, 10), (200, 200, 200)]),
        (two_colours("1", 0, 1), "png", [(0, 0, 0), WHITE]),
        (two_colours("RGB", RED, BLUE).quantize(4), "png", [RED, BLUE]),
        (two_colours("RGBA", (255, 0, 0, 0), (0, 0, 255, 255)), "png", [WHITE, BLUE]),
        (two_colours("RGBA", (0, 0, 0, 51), (0, 0, 255, 255)), "png", [(204, 204, 204), BLUE]),
        (two_colours("RGBA", (255, 0, 0, 0), (0, 0, 255, 255)), "webp", [WHITE, BLUE]),
        (two_colours("LA", (0, 0), (50, 255)), "png", [WHITE, (50, 50, 50)]),
        (two_colours("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), "jpg", [RED, BLUE]),
        (two_colours("I;16", 257 * 10, 65535), "png", [(10, 10, 10), WHITE]),
        (two_colours("I;16", 257 * 10, 65535), "tif", [(10, 10, 10), WHITE]),
        (two_colours("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), "tif", [RED, BLUE]),
    ],
    ids=[
        "grey",
        "1-bit",
        "palette",
        "RGBA",
        "half",
        "WebP alpha",
        "grey alpha",
        "CMYK",
        "16-bit grey",
        "16-bit TIFF",
        "CMYK TIFF",
    ],
)
def test_modes(tmp_path, image, suffix, expected):
    path = save(image, tmp_path / f"image.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert np.allclose(corners(path), expected, atol=3 if suffix == "jpg" else 0)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_transparent_palette_colour_is_white(tmp_path, suffix):
    image = Image.new("P", (32, 16), 1)
    image.putpalette([*RED, *BLUE])
    image.paste(0, (0, 0, 16, 16))
    path = save(image, tmp_path / f"image.{suffix}", transparency=0)
    with Image.open(path) as stored:
        assert stored.mode == "P"
    assert corners(path) == [WHITE, BLUE]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_without_alpha_is_white(tmp_path, mode):
    first, second = (7, 9) if mode == "L" else (RED, BLUE)
    path = save(two_colours(mode, first, second), tmp_path / "image.png", transparency=first)
    assert corners(path) == [WHITE, (9, 9, 9) if mode == "L" else BLUE]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    path = save(frames[0], tmp_path / f"image.{suffix}", save_all=True, append_images=frames[1:])
    assert np.allclose(corners(path), [RED, RED], atol=3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_an_image_stored_on_its_side_is_turned_upright(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees: the left side is the top
    path = save(two_colours("RGB", RED, BLUE), tmp_path / f"image.{suffix}", exif=exif)
    image = load_image(path)
    assert image.size == (16, 32)
    assert np.allclose(image.getpixel((8, 2)), RED, atol=5)
    assert np.allclose(image.getpixel((8, 29)), BLUE, atol=5)


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_that_of_viewers(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = Image.effect_noise((24, 16), 90)
    path = save(noise, tmp_path / "image.png", exif=exif)
    with Image.open(path) as stored:
        upright = ImageOps.exif_transpose(stored)
    assert np.array_equal(np.asarray(load_image(path))[:, :, 0], np.asarray(upright))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif", "avif", "ppm"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"image.{suffix}")
    data = path.read_bytes()
    for part in (0.1, 0.5, 0.9):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(UserError, match=path.name):
            load_image(path)


def test_what_is_no_image_is_named(tmp_path):
    files = {
        "text.jpg": b"<html>not found</html>",
        "empty.png": b"",
        "broken.png": b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", b"short"),
        "document.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.png").mkdir()
    for name in (*files, "folder.png", "absent.png"):
        with pytest.raises(UserError, match=name):
            load_image(tmp_path / name)


def test_other_formats_are_refused_whatever_the_name(tmp_path):
    path = save(Image.new("RGB", (4, 4)), tmp_path / "image.png", format="SGI")
    with pytest.raises(UserError, match=r"image\.png.*JPEG, PNG"):
        load_image(path)
    path = save(Image.new("F", (4, 4), 0.5), tmp_path / "image.tif")
    with pytest.raises(UserError, match=r"image\.tif.*floating-point"):
        load_image(path)
    with pytest.raises(UserError, match=r"an image: cannot be read"):
        load_image(b"no image")


def test_a_decompression_bomb_is_named_and_not_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match=r"bomb\.png.*exceeds limit"):
        load_image(path)
