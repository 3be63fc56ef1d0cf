"""What stands in the messages of OpenAI and Anthropic: each kind of part read, and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, TypeAlias

from contextwindow import media_types
from contextwindow.attachments import from_base64, from_url, read_attachment
from contextwindow.errors import ConfigError
from contextwindow.records import Attachment
from contextwindow.store.checks import check_text, shown

Object: TypeAlias = dict[str, Any]

_PICTURES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
USUAL_PICTURE: Final = "image/jpeg"
"""What an image by URL is taken for where nothing else tells it."""

# Of replies alone.  What a server tool is called changes; how its blocks are called does not.
_SERVER_PARTS: Final = ("_tool_use", "_tool_result")
_SERVER_BLOCKS: Final = ("container_upload", "compaction")

# It goes back as it came; other names are mended when they are sent.
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")


def only(value: Object, *known: str) -> None:
    """Refuse what would be lost; what is empty says nothing.

    Raises:
        ConfigError: *value* has other members than the *known* ones.
    """
    for key, member in value.items():
        if key not in known and not is_empty(member):
            raise ConfigError(f"{key!r:.60} is not known here")


def is_empty(value: object) -> bool:
    """Whether *value* is one of those that say nothing."""
    return value in (None, [], {}, "")


def text_in(value: Object, key: str, what: str, *, default: str | None = None) -> str:
    """The text under *key*; a *default* stands for what is missing or null.

    Raises:
        ConfigError: it is no text, or missing or empty where there is no default.
    """
    text = value.get(key)
    if text is None and default is not None:
        return default
    return check_text(text, f"{key!r} of {what}", empty=default is not None or key == "text")


def object_in(value: Object, key: str) -> Object:
    """The object under *key*.

    Raises:
        ConfigError: there is none.
    """
    found = value.get(key)
    if isinstance(found, dict):
        return found
    raise ConfigError(f"{key!r} must be an object, not {shown(found)}")


def each_part(content: object, read: Callable[[Object], Any]) -> Iterator[Any]:
    """What *read* makes of each part; a text stands for itself."""
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, list) or not content:
        raise ConfigError(f"'content' must be a text or a list, not {shown(content)}")
    for part in content:
        if not isinstance(part, dict):
            raise ConfigError(f"a part must be an object, not {shown(part)}")
        yield read(part)


def texts_in(content: object, what: str) -> Iterator[str]:
    """The texts of what may hold nothing else."""

    def read(part: Object) -> str:
        if part.get("type") != "text":
            raise ConfigError(f"{what} may hold text alone, not {shown(part.get('type'))}")
        only(part, "type", "text", "cache_control")
        return text_in(part, "text", what)

    if content == []:
        return iter(())
    return each_part(content, read)


def output_in(content: object) -> str:
    """The text of a tool's output; of what is no text a note says that it was there."""
    notes: list[str] = []

    def read(part: Object) -> str:
        kind = part.get("type")
        if kind in ("image", "document"):
            media_type = object_in(part, "source").get("media_type")
            what = media_type if isinstance(media_type, str) else kind
            notes.append(f"[attachment ({what:.60}) left out: a tool's output holds text alone]")
            return ""
        return "".join(texts_in([part], "a tool's output"))

    text = "" if is_empty(content) else "".join(each_part(content, read))
    return "\n\n".join(filter(None, [text, *notes]))


def said_in(content: object) -> Iterator[tuple[str, str]]:
    """Texts and refusals of an assistant's message."""

    def read(part: Object) -> tuple[str, str]:
        kind = part.get("type")
        if kind == "text":
            only(part, "type", "text")
            return "content", text_in(part, "text", "a text")
        if kind == "refusal":
            only(part, "type", "refusal")
            return "refusal", text_in(part, "refusal", "a refusal")
        raise ConfigError(f"a part of the type {shown(kind)} is not known")

    if isinstance(content, str):
        return iter((("content", content),))
    return each_part(content, read) if content else iter(())


def checked_call(call: object, number: int) -> Object:
    """A tool call for the decoder, its place in the reply said."""
    if not isinstance(call, dict):
        raise ConfigError(f"a tool call must be an object, not {shown(call)}")
    text_in(call, "id", "a tool call")
    kind = call.get("type", "function")
    if kind not in ("function", "custom"):
        raise ConfigError(f"a tool call of the type {shown(kind)} is not known")
    given = object_in(call, kind)
    text_in(given, "name", "a tool call")
    arguments = "arguments" if kind == "function" else "input"
    only(given, "name", arguments)
    text_in(given, arguments, "a tool call", default="")
    return {**call, "index": number}


def checked_block(block: Object) -> Object:
    """A block of a reply for the decoder, which keeps it as it is."""
    kind = block.get("type")
    match kind:
        case "text":
            text_in(block, "text", "a text")
        case "thinking":
            text_in(block, "thinking", "a thought", default="")
            text_in(block, "signature", "a thought", default="")
        case "redacted_thinking":
            text_in(block, "data", "a thought")
        case "tool_use":
            text_in(block, "id", "a tool call")
            if _NAME.fullmatch(text_in(block, "name", "a tool call")) is None:
                raise ConfigError(f"{block['name']!r:.60} is no name that a tool can have")
            object_in(block, "input")
        case str() if kind.endswith(_SERVER_PARTS):
            text_in(block, "id" if kind.endswith("use") else "tool_use_id", "a server's tool")
        case _ if kind not in _SERVER_BLOCKS:
            raise ConfigError(f"a block of the type {shown(kind)} is not known")
    return {key: member for key, member in block.items() if key != "cache_control"}


def from_source(source: Object, name: str, usual: str) -> Attachment:
    """The attachment of an Anthropic block."""
    match source.get("type"):
        case "base64":
            only(source, "type", "media_type", "data")
            media_type = text_in(source, "media_type", "a source")
            return from_base64(text_in(source, "data", "a source"), media_type, name)
        case "text":
            only(source, "type", "media_type", "data")
            data = text_in(source, "data", "a source").encode()
            return read_attachment(Attachment(media_type=media_types.TEXT, name=name, data=data))
        case "url":
            only(source, "type", "url")
            return from_url(text_in(source, "url", "a source"), usual, name)
        case kind:
            raise ConfigError(f"a source of the type {shown(kind)} is not known")


def picture(found: Attachment) -> Attachment:
    """*found* as an image that all providers take.

    Raises:
        ConfigError: its bytes, or the name in its URL, are those of something else.
    """
    said = found.media_type
    if found.data is None and not said.startswith("image/"):
        # The name of a page or program, which gives a picture all the same.
        return replace(found, media_type=USUAL_PICTURE)
    known = said if found.data is None else media_types.by_content(found.data)
    if said not in _PICTURES or known != said:
        raise ConfigError(f"an image must be a PNG, JPEG, GIF or WebP; this is none, but {said}")
    return found
