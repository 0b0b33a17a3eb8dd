"""PNG and JPEG files without their metadata.

Viewers pass over a broken colour profile, a comment of megabytes or a bad checksum of either; a strict decoder gives up
on them although all pixels are there. What is kept is what the pixels need, and the orientation.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_APP0, _APP1, _APP14, _APP15, _COMMENT, _SCAN = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE, 0xDA
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length


def without_metadata(source: Path | bytes) -> Iterator[bytes]:
    """The file without its metadata, the version that keeps most first; nothing where it is of another format."""
    if isinstance(source, bytes):
        data = source
    else:
        try:
            with source.open("rb") as file:
                start = file.read(len(_PNG))
                data = start + file.read() if start.startswith((_PNG, _JPEG)) else b""
        except OSError:
            return
    if data.startswith(_PNG):
        yield _png(data, (b"tRNS", b"eXIf"))
        yield _png(data, (b"eXIf",))
    elif data.startswith(_JPEG):
        yield _jpeg(data)


def _png(data: bytes, kept: tuple[bytes, ...]) -> bytes:
    """The critical chunks, and those of `kept` whose checksum is right (PNG specification, section 5)."""
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        chunk = data[at : at + 12 + length]
        critical = kind[:1].isupper()
        if critical or (kind in kept and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))):
            parts.append(chunk)
        at += 12 + length
    return b"".join(parts)


def _jpeg(data: bytes) -> bytes:
    """Tables, frame and scans, and of the application segments those for colours and orientation (ITU T.81, B.1)."""
    parts, at = [_JPEG], len(_JPEG)
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker in (0x00, 0xFF, *_STANDALONE):
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _SCAN:
            return b"".join([*parts, data[at:]])
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        kept = {_APP0: (b"JFIF\0", 16), _APP1: (b"Exif\0\0", 16), _APP14: (b"Adobe", 14)}
        beginning, least = kept.get(marker, (None, 0))
        if _APP0 <= marker <= _APP15:
            if beginning is not None and segment[4:].startswith(beginning) and len(segment) >= least:
                parts.append(segment)
        elif marker != _COMMENT:
            parts.append(segment)
        at += 2 + length
    return b"".join(parts)
