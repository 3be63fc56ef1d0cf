"""What goes with a prompt: reading it, naming it, and guessing its tokens.

Bytes are read when the prompt is written.  What is given as a URL stays a URL, which the provider
fetches.  It is never fetched here: a URL that a user of a bot may choose could then reach what
only this machine may reach (server-side request forgery), and writing a prompt would take as long
as the other server pleases.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from contextwindow import media_types
from contextwindow.errors import ConfigError
from contextwindow.records import Attachment
from contextwindow.tokens import count_tokens

Plain: TypeAlias = "Attachment | str | os.PathLike[str] | bytes | bytearray | memoryview"
Attachable: TypeAlias = "Plain | tuple[Plain, str]"
"""What a prompt takes as an attachment; a tuple adds the media type."""

LARGEST_BYTES: Final = 50_000_000
"""Bytes of one attachment, read into memory and sent with each call: what OpenAI takes as a file
("File inputs", read 2026-11).  Other providers take less in a request."""

IMAGE_TOKENS: Final = 1_000
"""Tokens that an image is taken for, whatever its size.

Of 1,024 by 1,024 pixels: 765 at OpenAI (85, and 170 for each of four tiles), about 1,400 at
Anthropic (pixels / 750), 258 or 1,120 at Gemini.  Small ones are 85 (OpenAI, "Images and vision",
read 2026-11).
"""

PAGE_TOKENS: Final = 1_500
"""Tokens that a page of a document is taken for: Anthropic's "PDF support" says 1,500 to 3,000 of
text, other providers fewer."""

_BYTES_A_PAGE: Final = 50_000
_MOST_PAGES: Final = 10_000
# 32 tokens a second (Gemini, "Audio understanding"), at 16,000 bytes a second.
_BYTES_A_SOUND_TOKEN: Final = 500
_MOST_TOKENS: Final = 1 << 30

_LONGEST_URL: Final = 16_384
_LONGEST_NAME: Final = 255
_SCHEME: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")
_FETCHED: Final = ("http", "https", "gs")
_PAGE: Final = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_HOW: Final = "pass (value, media_type), such as (value, 'text/plain')"


def listed(attachments: object) -> list[object]:
    """*attachments* as a list.

    Raises:
        ConfigError: it is one attachment, or nothing that has any.
    """
    if type(attachments) in (tuple, list):
        return list(attachments)  # type: ignore[call-overload, no-any-return]  # as just seen
    alone = isinstance(attachments, (str, bytes, bytearray, memoryview, os.PathLike, Attachment))
    if alone or not isinstance(attachments, Iterable):
        raise ConfigError(
            f"attachments must be a list, not {type(attachments).__name__}: write [attachment]"
        )
    return list(attachments)


def read_attachment(value: object, *, untouchable: Collection[tuple[int, int]] = ()) -> Attachment:
    """The attachment that *value* stands for.

    Args:
        value: a path (``os.PathLike``, or a str that names an existing file), bytes, a URL
            (``http``, ``https``, ``gs``; ``data`` is decoded), an ``Attachment``, or a tuple of
            one of these and its media type.
        untouchable: device and number of files that must not be opened.

    Raises:
        ConfigError: it cannot be read, is empty or above ``LARGEST_BYTES``, or its media type
            cannot be told.
    """
    said: str | None = None
    if isinstance(value, tuple):
        value, said = _pair(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(value), "", said, "attached bytes")
    if isinstance(value, Attachment):
        return _checked(value, said)
    if isinstance(value, os.PathLike):
        return _from_path(value, said, untouchable)
    if isinstance(value, str):
        return _from_text(value, said, untouchable)
    raise ConfigError(
        f"an attachment must be a path, bytes, a URL or an Attachment, not {type(value).__name__}"
    )


def from_url(url: str, usual: str, name: str = "") -> Attachment:
    """The attachment behind a URL: ``data:`` is decoded, others are kept; never a path.

    Args:
        usual: its media type where neither *name* nor the URL's own tells it.

    Raises:
        ConfigError: it is no URL that can be kept, or holds no data.
    """
    if url[:5].lower() == "data:":
        found = read_attachment(url)
        return _from_bytes(
            found.data or b"", _named(name, "a name"), found.media_type, "a data: URL"
        )
    try:
        last = unquote(urlsplit(url).path.rpartition("/")[2])
    except ValueError as error:
        raise ConfigError(f"{url!r:.120} is no URL: {error}") from error
    media_type = media_types.by_name(name) or media_types.by_name(last) or usual
    return _checked(Attachment(media_type=media_type, name=name, url=url), None)


def from_base64(text: str, media_type: str, name: str = "") -> Attachment:
    """The attachment whose bytes are *text* in base64.

    Raises:
        ConfigError: it is no base64, or not of that media type.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ConfigError(f"the data of an attachment is no base64: {error}") from error
    return _checked(Attachment(media_type=media_type, name=name, data=data), None)


def renamed(attachment: Attachment, name: object) -> Attachment:
    """*attachment*, which was read before, under another name.

    Raises:
        ConfigError: the name cannot be one.
    """
    return replace(attachment, name=_named(name, "the name of an attachment"))


def tokens_of(attachments: Sequence[Attachment]) -> int:
    """A guess at the tokens of *attachments*; text is counted."""
    return min(sum(map(_tokens, attachments)), _MOST_TOKENS)


def _pair(pair: tuple[object, ...]) -> tuple[object, str]:
    if len(pair) != 2 or isinstance(pair[0], tuple):
        raise ConfigError(f"an attachment as a tuple is (value, media_type), not {pair!r:.80}")
    return pair[0], media_types.normal(pair[1])


def _from_text(text: str, said: str | None, untouchable: Collection[tuple[int, int]]) -> Attachment:
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    if scheme == "data":
        return _from_data_url(text, said)
    if scheme in _FETCHED:
        return _from_url(text, said)
    if os.path.exists(text):
        return _from_path(text, said, untouchable)
    if scheme == "file":
        raise ConfigError(f"{text!r:.120}: pass the path of a file, not a file: URL")
    if scheme and text[len(scheme) + 1 :].startswith("//"):
        raise ConfigError(
            f"{text!r:.120}: URLs of {scheme}: are not known; use http, https, gs or data"
        )
    raise ConfigError(
        f"{text!r:.120} is neither an existing file nor a URL; text that is to be attached is "
        "passed as bytes"
    )


def _from_path(
    path: str | os.PathLike[str], said: str | None, untouchable: Collection[tuple[int, int]]
) -> Attachment:
    try:
        text = os.fspath(path)
        if isinstance(text, bytes):
            text = os.fsdecode(text)
        name = _named(os.path.basename(text), f"the name of {text!r:.120}")
        data = _read(text, untouchable)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {text!r:.120}") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{text!r:.120} cannot be read: {why}") from error
    return _from_bytes(data, name, said, repr(text))


def _read(path: str, untouchable: Collection[tuple[int, int]]) -> bytes:
    """The bytes of a regular file, one more than are allowed at the most.

    Raises:
        ConfigError: it is another kind of file, or a database that is open.
    """
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path!r:.120} is a directory; attach the files in it one by one")
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path!r:.120} is no regular file; read it, and attach the bytes")
    if (found.st_dev, found.st_ino) in untouchable:
        # Closing any descriptor of it would drop SQLite's locks on it.
        raise ConfigError(f"{path!r:.120} is a database that is open here; attach a copy of it")
    if found.st_size > LARGEST_BYTES:
        raise _too_large(repr(path), found.st_size)
    # A pipe that took the file's place must not stop us.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConfigError(f"{path!r:.120} is no regular file any more")
        return file.read(LARGEST_BYTES + 1)


def _from_bytes(data: bytes, name: str, said: str | None, what: str) -> Attachment:
    if not data:
        raise ConfigError(f"{what:.120} is empty; there is nothing to attach")
    if len(data) > LARGEST_BYTES:
        raise _too_large(what, len(data))
    media_type = said or media_types.of_data(data, name)
    if media_type is None:
        raise ConfigError(f"what {what:.120} is cannot be told from its bytes or name; {_HOW}")
    other = media_types.contradiction(data, media_type)
    if other is not None:
        raise ConfigError(f"{what:.120} is {other}, not {media_type}: no provider would take it")
    if media_type.startswith("text/") and not media_types.is_text(data):
        raise ConfigError(
            f"{what:.120} is no UTF-8 text without NUL, so it cannot go as {media_type}; decode "
            "it and attach text.encode()"
        )
    digest = hashlib.sha256(data).hexdigest()
    return Attachment(media_type=media_type, digest=digest, name=name, data=data)


def _from_url(url: str, said: str | None, name: str | None = None) -> Attachment:
    if len(url) > _LONGEST_URL:
        raise ConfigError(f"the URL {url!r:.80} has {len(url)} characters; {_LONGEST_URL} may be")
    bad = next((one for one in url if one.isspace() or not one.isprintable()), None)
    if bad is not None:
        raise ConfigError(f"the URL {url!r:.120} holds {bad!a}; write it as a %-escape")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise ConfigError(f"{url!r:.120} is no URL: {error}") from error
    if not host:
        raise ConfigError(f"the URL {url!r:.120} names no host")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"the URL of {host} holds a user name or password, which would be stored and shown; "
            "leave it out"
        )
    if name is None:
        last = unquote(parts.path.rpartition("/")[2])
        name = "" if _control(last) else _named(last, "the name in a URL")
    media_type = said or media_types.by_name(name)
    if media_type is None:
        raise ConfigError(
            f"the media type of {url!r:.120} cannot be told from its name, and it is not fetched "
            "here; pass (url, media_type), such as (url, 'image/png')"
        )
    return Attachment(media_type=media_type, name=name, url=url)


def _from_data_url(url: str, said: str | None) -> Attachment:
    head, comma, body = url[5:].partition(",")
    if not comma:
        raise ConfigError(f"{url!r:.80} is no data: URL: it has no comma in front of its data")
    if len(body) > LARGEST_BYTES * 3:  # each byte may be a %-escape
        raise _too_large("a data: URL", len(body))
    media_type, *parameters = (one.strip() for one in head.split(";"))
    try:
        data = unquote_to_bytes(body)
        if parameters and parameters[-1].lower() == "base64":
            data = base64.b64decode(b"".join(data.split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise ConfigError(f"the data of {url!r:.80} is no base64: {error}") from error
    for one in parameters:
        key, _, value = one.partition("=")
        charset = value.strip('"').lower()
        if key.lower() == "charset" and charset not in ("utf-8", "utf8", "us-ascii", "ascii"):
            raise ConfigError(f"text of {url!r:.80} is in {charset!r}; it must be in UTF-8")
    if said is None:
        said = media_types.normal(media_type) if media_type else media_types.TEXT
    return _from_bytes(data, "", said, "a data: URL")


def _checked(given: Attachment, said: str | None) -> Attachment:
    """*given* as it can be stored: whoever made it may have written anything into it."""
    media_type = said or (media_types.normal(given.media_type) if given.media_type else None)
    name = _named(given.name, "the name of an attachment")
    data, url = given.data, given.url
    if (data is None) == (url is None):
        raise ConfigError("an Attachment has either data (bytes) or url (str)")
    if url is not None:
        if not isinstance(url, str):
            raise ConfigError(f"the url of an Attachment must be str, not {type(url).__name__}")
        match = _SCHEME.match(url)
        if match is None or match[1].lower() not in _FETCHED:
            raise ConfigError(f"the url {url!r:.80} of an Attachment is not http, https or gs")
        return _from_url(url, media_type, name)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ConfigError(f"the data of an Attachment must be bytes, not {type(data).__name__}")
    what = f"the attachment {name!r}" if name else "an attachment"
    return _from_bytes(bytes(data), name, media_type, what)


def _named(name: object, what: str) -> str:
    """*name* without folders, and without what hides in it or turns it around.

    Raises:
        ConfigError: it holds a control character, or is no str.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{what} must be str, not {type(name).__name__}")
    base = re.split(r"[/\\]", name)[-1]
    bad = _control(base)
    if bad is not None:
        raise ConfigError(
            f"{what} holds the control character {bad!a}; give it another name, such as with "
            "Attachment(media_type=…, name=…, data=…)"
        )
    base = "".join(one for one in base if unicodedata.category(one) not in ("Cf", "Zl", "Zp"))
    # What is no UTF-8 on the disk comes as half surrogates, which no database keeps.
    base = re.sub("[\ud800-\udfff]", "\ufffd", base).strip()
    if base in (".", ".."):
        return ""
    stem, dot, ending = base.rpartition(".")
    if len(base) <= _LONGEST_NAME or len(ending) > 20:
        return base[:_LONGEST_NAME]
    return stem[: _LONGEST_NAME - len(ending) - 1] + dot + ending


def _control(name: str) -> str | None:
    return next((one for one in name if unicodedata.category(one) == "Cc"), None)


def _too_large(what: str, size: int) -> ConfigError:
    return ConfigError(
        f"{what:.120} has {size / 1e6:.1f} MB; an attachment may have {LARGEST_BYTES / 1e6:.0f} "
        "MB: pass a URL, or a part of it"
    )


def _tokens(attachment: Attachment) -> int:
    kind, data = attachment.media_type.partition("/")[0], attachment.data
    if kind == "image":
        return IMAGE_TOKENS
    if data is None:
        return PAGE_TOKENS
    if kind == "text":
        return count_tokens(data.decode("utf-8", "replace"))
    if kind in ("audio", "video"):
        return len(data) // _BYTES_A_SOUND_TOKEN + 1
    # Where the pages are compressed away, by the size of usual ones.
    pages = sum(1 for _ in _PAGE.finditer(data)) or len(data) // _BYTES_A_PAGE + 1
    return min(pages, _MOST_PAGES) * PAGE_TOKENS
