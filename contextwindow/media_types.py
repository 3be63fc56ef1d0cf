"""What kind of file some bytes are: by themselves, or by their name."""

from __future__ import annotations

import re
from typing import Final

from contextwindow.errors import ConfigError

TEXT: Final = "text/plain"

_OFFICE: Final = "application/vnd.openxmlformats-officedocument"
_OPEN: Final = "application/vnd.oasis.opendocument"
_COMPOUND: Final = "application/x-cfb"

_SIGNATURES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"ID3", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"\0\0\x01\xba", "video/mpeg"),
    (b"{\\rtf", "application/rtf"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _COMPOUND),
    (b"\x1f\x8b", "application/gzip"),
)
_RIFF: Final = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS: Final = {
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
    b"avif": "image/avif",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    b"qt  ": "video/quicktime",
}
# A folder that only this kind of file has.
_PARTS: Final = (
    (b"word/", f"{_OFFICE}.wordprocessingml.document"),
    (b"xl/", f"{_OFFICE}.spreadsheetml.sheet"),
    (b"ppt/", f"{_OFFICE}.presentationml.presentation"),
)
_CONTAINERS: Final = frozenset({"application/zip", _COMPOUND})
_HEAD: Final = 65_536

# What is text without a type of its own is text/plain: models take text/* and little else.
_NAMES: Final = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "heic": "image/heic",
    "heif": "image/heif",
    "avif": "image/avif",
    "bmp": "image/bmp",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "svg": "image/svg+xml",
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "m4a": "audio/mp4",
    "aac": "audio/aac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "aiff": "audio/aiff",
    "mp4": "video/mp4",
    "m4v": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mpeg": "video/mpeg",
    "mpg": "video/mpeg",
    "avi": "video/x-msvideo",
    "pdf": "application/pdf",
    "rtf": "application/rtf",
    "doc": "application/msword",
    "xls": "application/vnd.ms-excel",
    "ppt": "application/vnd.ms-powerpoint",
    "docx": f"{_OFFICE}.wordprocessingml.document",
    "xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    "pptx": f"{_OFFICE}.presentationml.presentation",
    "odt": f"{_OPEN}.text",
    "ods": f"{_OPEN}.spreadsheet",
    "odp": f"{_OPEN}.presentation",
    "epub": "application/epub+zip",
    "zip": "application/zip",
    "gz": "application/gzip",
    "txt": TEXT,
    "log": TEXT,
    "md": "text/markdown",
    "csv": "text/csv",
    "html": "text/html",
    "htm": "text/html",
    "css": "text/css",
    "xml": "text/xml",
    "js": "text/javascript",
    "py": "text/x-python",
}
_ALIASES: Final = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "audio/mp3": "audio/mpeg",
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/x-m4a": "audio/mp4",
    "audio/x-flac": "audio/flac",
    "application/x-pdf": "application/pdf",
}
# By their bytes these are known without a doubt, and what lacks the bytes is not one of them.
_CERTAIN: Final = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"}
)
_FORM: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,99}/[a-z0-9*][a-z0-9!#$&^_.+-]{0,99}")


def of_data(data: bytes, name: str) -> str | None:
    """The media type of *data*: by its first bytes, else by its *name*, else text if it is text.

    None where none of these says it, or where a name promises what the bytes are not.
    """
    found = by_content(data)
    named = by_name(name)
    if found in _CONTAINERS and named is not None and named.startswith("application/"):
        return named
    if found is not None:
        return found
    text = is_text(data)
    if named is None or (named in _CERTAIN and text):
        # An error page that was saved as a picture is refused by every later call.
        return TEXT if text and named is None else None
    return named if text or not named.startswith("text/") else None


def by_content(data: bytes) -> str | None:
    """The media type that the first bytes of *data* tell, or None."""
    for signature, media_type in _SIGNATURES:
        if data.startswith(signature):
            return media_type
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12])
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return "audio/aiff"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "video/mp4")
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm" if b"webm" in data[:64] else "video/x-matroska"
    if data.startswith(b"PK\x03\x04"):
        return _zipped(data)
    if data[:1024].lstrip(b"\xef\xbb\xbf\0 \t\r\n").startswith(b"%PDF-"):
        return "application/pdf"
    return _framed(data)


def by_name(name: str) -> str | None:
    """The media type that goes with the ending of *name*, or None."""
    return _NAMES.get(name.rpartition(".")[2].lower()) if "." in name else None


def contradiction(data: bytes, said: str) -> str | None:
    """What *data* is when it cannot be the media type *said*, else None."""
    found = by_content(data)
    if found is None or found == said or not (found in _CERTAIN or said in _CERTAIN):
        return None
    return found


def is_text(data: bytes) -> bool:
    """Whether *data* is UTF-8 without NUL."""
    if b"\0" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def normal(media_type: object) -> str:
    """*media_type* in lower case, under its usual name and without parameters.

    Raises:
        ConfigError: it is no media type.
    """
    if not isinstance(media_type, str):
        raise ConfigError(f"a media type must be a str such as 'image/png', not {media_type!r:.60}")
    plain = media_type.partition(";")[0].strip().lower()
    if _FORM.fullmatch(plain) is None:
        raise ConfigError(f"{media_type!r:.60} is no media type; write one such as 'image/png'")
    return _ALIASES.get(plain, plain)


def _zipped(data: bytes) -> str:
    if data[30:38] == b"mimetype":
        # OpenDocument and EPUB: the first entry says it, uncompressed.
        said = data[38:120].partition(b"PK")[0].decode("ascii", "replace")
        return said if _FORM.fullmatch(said) is not None else "application/zip"
    ends = data[:_HEAD] + data[-_HEAD:]
    if b"[Content_Types].xml" in ends:
        for part, media_type in _PARTS:
            if part in ends:
                return media_type
    return "application/zip"


def _framed(data: bytes) -> str | None:
    """MPEG audio without a header of its own: a frame's first three bytes."""
    if len(data) < 3 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    if data[1] & 0xF6 == 0xF0:
        return "audio/aac"
    layer_three = data[1] & 0x06 == 0x02 and data[1] & 0x18 != 0x08
    rates = data[2] & 0xF0 != 0xF0 and data[2] & 0x0C != 0x0C
    return "audio/mpeg" if layer_three and rates else None
