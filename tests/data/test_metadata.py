import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from multicoco.data.example import load_image
from multicoco.data.metadata import without_metadata
from multicoco.errors import UserError


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


NOISE = Image.effect_noise((32, 16), 50).convert("RGB")
PNG, JPEG = encode(NOISE, "PNG"), encode(NOISE, "JPEG")
AFTER_IHDR, AFTER_SOI, AFTER_JFIF = 33, 2, 20


def chunk(kind: bytes, data: bytes, crc_error: int = 0) -> bytes:
    crc = zlib.crc32(kind + data) ^ crc_error
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def exif(*entries: bytes) -> bytes:
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4)


UPRIGHT, ON_ITS_SIDE = (exif(struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)) for orientation in (1, 6))
LONG = b"key\0\0" + zlib.compress(b"x" * 2_000_000)  # more than a decoder takes for one text

PNG_CHUNKS = {
    "checksum of a text": chunk(b"tEXt", b"key\0text", crc_error=1),
    "long text": chunk(b"zTXt", LONG),
    "unknown compression": chunk(b"zTXt", b"key\0\5text"),
    "broken XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='9'/>"),
    "EXIF that is no hex": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  8\nzzzz")),
    "empty profile": chunk(b"iCCP", b""),
    "unknown compression of the profile": chunk(b"iCCP", b"name\0\7profile"),
    "long profile": chunk(b"iCCP", LONG),
    "garbage as profile": chunk(b"iCCP", b"name\0\0" + zlib.compress(b"garbage")),
    "short resolution": chunk(b"pHYs", b"\0\0"),
    "no resolution": chunk(b"pHYs", bytes(9)),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short chromaticities": chunk(b"cHRM", b"\0"),
    "no intent": chunk(b"sRGB", b""),
    "garbage as EXIF": chunk(b"eXIf", b"garbage"),
    "broken animation": chunk(b"acTL", b""),
    "broken frame": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"x"),
    "short transparency": chunk(b"tRNS", b"\0"),
    "unknown chunk": chunk(b"abCd", b"x"),
}
JPEG_SEGMENTS = {
    "garbage as EXIF": segment(0xE1, b"Exif\0\0garbage"),
    "cut EXIF": segment(0xE1, b"Exif\0\0MM\0*\0\0"),
    "EXIF that ends in itself": segment(0xE1, b"Exif\0\0" + UPRIGHT[:-4] + UPRIGHT[4:8]),
    "orientation as text": segment(0xE1, b"Exif\0\0" + exif(struct.pack(">HHI4s", 0x0112, 2, 2, b"a\0\0\0"))),
    "orientation 99": segment(0xE1, b"Exif\0\0" + exif(struct.pack(">HHIHH", 0x0112, 3, 1, 99, 0))),
    "resolution 1/0": segment(0xE1, b"Exif\0\0" + exif(struct.pack(">HHII", 0x011A, 5, 1, 30)) + bytes(8)),
    "profile without number": segment(0xE2, b"ICC_PROFILE\0"),
    "garbage as profile": segment(0xE2, b"ICC_PROFILE\0\1\1garbage"),
    "garbage as index of pictures": segment(0xE2, b"MPF\0garbage"),
    "cut Photoshop block": segment(0xED, b"Photoshop 3.0\0008BIM\x03"),
    "cut Adobe segment": segment(0xEE, b"Adobe"),
    "comment": segment(0xFE, b"\xff\xd8\xff"),
    "garbage between segments": b"\0\1\2",
}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(load_image(data))


@pytest.mark.parametrize("chunks", PNG_CHUNKS.values(), ids=PNG_CHUNKS)
def test_a_png_with_odd_metadata_loads(chunks):
    before = PNG[:AFTER_IHDR] + chunks + PNG[AFTER_IHDR:]
    behind = PNG[:-12] + chunks + PNG[-12:]
    assert np.array_equal(pixels(before), np.asarray(NOISE))
    assert np.array_equal(pixels(behind), np.asarray(NOISE))


@pytest.mark.parametrize("segments", JPEG_SEGMENTS.values(), ids=JPEG_SEGMENTS)
@pytest.mark.parametrize("jfif", [True, False])
def test_a_jpeg_with_odd_metadata_loads(segments, jfif):
    start = JPEG[:AFTER_JFIF] if jfif else JPEG[:AFTER_SOI]
    assert np.array_equal(pixels(start + segments + JPEG[AFTER_JFIF:]), pixels(JPEG))


@pytest.mark.parametrize("start", [b"JFIF", b"JFIF\0\1", b""])
def test_a_jpeg_with_a_cut_first_segment_loads(start):
    assert np.array_equal(pixels(JPEG[:AFTER_SOI] + segment(0xE0, start) + JPEG[AFTER_JFIF:]), pixels(JPEG))


def test_what_follows_an_image_is_no_matter():
    for data in (PNG, JPEG, encode(NOISE, "GIF"), encode(NOISE, "WEBP"), encode(NOISE, "BMP")):
        assert np.array_equal(pixels(data + b"garbage" * 99), pixels(data))


def test_colours_orientation_and_transparency_are_kept():
    bad_text, bad_profile = chunk(b"tEXt", b"key\0text", crc_error=1), segment(0xE2, b"ICC_PROFILE\0")
    png = encode(NOISE, "PNG", transparency=NOISE.getpixel((0, 0)))
    damaged = png[:AFTER_IHDR] + bad_text + chunk(b"eXIf", ON_ITS_SIDE) + png[AFTER_IHDR:]
    assert pixels(damaged).shape == (32, 16, 3)
    assert pixels(damaged)[0, -1].tolist() == [255, 255, 255]  # the transparent corner, turned
    jpeg = JPEG[:AFTER_SOI] + segment(0xE1, b"Exif\0\0" + ON_ITS_SIDE) + bad_profile + JPEG[AFTER_SOI:]
    assert pixels(jpeg).shape == (32, 16, 3)
    inks = encode(NOISE.convert("CMYK"), "JPEG")  # Adobe's segment says that they are inverted
    assert np.array_equal(pixels(inks[:AFTER_SOI] + bad_profile + inks[AFTER_SOI:]), pixels(inks))


@pytest.mark.parametrize("data", [PNG, JPEG], ids=["png", "jpeg"])
def test_pixels_that_are_not_there_are_still_refused(data):
    odd = {PNG: chunk(b"pHYs", b"\0\0"), JPEG: segment(0xE2, b"ICC_PROFILE\0")}[data]
    at = {PNG: AFTER_IHDR, JPEG: AFTER_SOI}[data]
    damaged = data[:at] + odd + data[at:]
    assert np.array_equal(pixels(damaged), pixels(data))
    for length in range(1, len(damaged) - 20, len(damaged) // 15):
        with pytest.raises(UserError):
            load_image(damaged[:length])


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "a.gif").write_bytes(encode(NOISE, "GIF"))
    assert list(without_metadata(tmp_path / "a.gif")) == []
    assert list(without_metadata(tmp_path / "absent.png")) == []
