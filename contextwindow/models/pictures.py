"""How large a picture is, from the first bytes of its file."""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Final

_HEAD: Final = 400_000
"""Characters of base64 that are looked at: a JPEG's size may stand behind a thumbnail."""

# The markers of JPEG that begin a frame, which says the size (ITU-T T.81, table B.1).
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decoded(data: object, characters: int | None = None) -> bytes:
    """The bytes of base64 (also its URL-safe form, or a ``data:`` URL); ``b""`` if it is none.

    Args:
        characters: how many of them are read, a multiple of four; None for all.
    """
    if isinstance(data, (bytes, bytearray)):
        return bytes(data[:characters])
    if not isinstance(data, str):
        return b""
    start = data.find(",") + 1 if data.startswith("data:") else 0
    head = data[start:] if characters is None else data[start : start + characters]
    head = head.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(head + "=" * (-len(head) % 4))
    except (binascii.Error, ValueError):
        return b""


def size_of(data: object) -> tuple[int, int] | None:
    """Width and height in pixels of a PNG, GIF, JPEG or WebP file; None where it is none."""
    head = decoded(data, _HEAD)
    try:
        found = _size(head)
    except struct.error:
        return None
    return found if found and found[0] > 0 and found[1] > 0 else None


def _size(head: bytes) -> tuple[int, int] | None:
    if head.startswith(b"\x89PNG"):
        width, height = struct.unpack_from(">II", head, 16)
        return width, height
    if head.startswith(b"GIF8"):
        width, height = struct.unpack_from("<HH", head, 6)
        return width, height
    if head.startswith(b"\xff\xd8"):
        return _jpeg(head)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(head)
    return None


def _jpeg(head: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 < len(head):
        if head[at] != 0xFF:
            return None
        marker = head[at + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        if marker == 0xFF or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + struct.unpack_from(">H", head, at + 2)[0]
    return None


def _webp(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(head[24:27], "little"),
            1 + int.from_bytes(head[27:30], "little"),
        )
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
