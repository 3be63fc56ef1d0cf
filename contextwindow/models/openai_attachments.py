"""Attachments in the forms of OpenAI's two APIs.

What each API takes: "Images and vision", "File inputs" and "Audio" of OpenAI's documentation, read
2026-11.  Servers that imitate it are trusted with images alone.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from contextwindow.models.sse import mended
from contextwindow.records import Attachment

PDF: Final = "application/pdf"

_IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
SOUNDS: Final = {"audio/wav": "wav", "audio/mpeg": "mp3"}
# Only what ends so is taken for what it is.
_ENDINGS: Final = {
    PDF: ".pdf",
    "application/rtf": ".rtf",
    "application/msword": ".doc",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.ms-powerpoint": ".ppt",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
}


def chat_problem(model: str, attachment: Attachment, *, hosted: bool) -> str | None:
    """Why *model* behind Chat Completions cannot take *attachment*, or None when it can.

    Args:
        hosted: OpenAI or Azure answers.
    """
    media_type = attachment.media_type
    if media_type in _IMAGES:
        return _not_fetched(model, attachment)
    if media_type.startswith("text/") or (hosted and (media_type == PDF or media_type in SOUNDS)):
        if attachment.data is not None:
            return None
        return f"{model} takes {media_type} as bytes, not by URL"
    also = ", PDF, WAV, MP3" if hosted else ""
    return f"{model} takes images (PNG, JPEG, GIF, WebP){also} and text, no {media_type}"


def responses_problem(model: str, attachment: Attachment, *, hosted: bool) -> str | None:
    """As `chat_problem`, behind the Responses API."""
    media_type = attachment.media_type
    if media_type in _IMAGES or (hosted and media_type in _ENDINGS):
        return _not_fetched(model, attachment)
    if media_type.startswith("text/"):
        if attachment.data is None and not hosted:
            return f"{model} takes {media_type} as bytes, not by URL"
        return _not_fetched(model, attachment)
    also = ", PDF, office documents" if hosted else ""
    return f"{model} takes images (PNG, JPEG, GIF, WebP){also} and text, no {media_type}"


def chat_part(attachment: Attachment, problem: str | None) -> dict[str, Any]:
    """A part of a user message of Chat Completions; a note where there is a *problem*."""
    media_type = attachment.media_type
    if problem is not None or media_type.startswith("text/"):
        return {"type": "text", "text": _text(attachment, problem)}
    if media_type in _IMAGES:
        return {"type": "image_url", "image_url": {"url": _url(attachment)}}
    if media_type in SOUNDS:
        sound = {"data": _base64(attachment), "format": SOUNDS[media_type]}
        return {"type": "input_audio", "input_audio": sound}
    return {"type": "file", "file": {"filename": _name(attachment), "file_data": _url(attachment)}}


def responses_part(attachment: Attachment, problem: str | None) -> dict[str, Any]:
    """A part of a user message of the Responses API; a note where there is a *problem*."""
    media_type = attachment.media_type
    if problem is None and media_type in _IMAGES:
        return {"type": "input_image", "image_url": _url(attachment)}
    if problem is None and attachment.url is not None:
        return {"type": "input_file", "file_url": attachment.url}
    if problem is not None or media_type.startswith("text/"):
        return {"type": "input_text", "text": _text(attachment, problem)}
    return {
        "type": "input_file",
        "filename": _name(attachment),
        "file_data": _url(attachment),
    }


def _not_fetched(model: str, attachment: Attachment) -> str | None:
    """Why the provider will not fetch a URL, or None."""
    if attachment.url is None or attachment.url.lower().startswith(("https:", "http:")):
        return None
    return f"{model} fetches http and https URLs alone"


def _text(attachment: Attachment, problem: str | None) -> str:
    """A text file as text, or the note that stands for what is left out."""
    name = f" {mended(attachment.name)}" if attachment.name else ""
    if problem is not None:
        return f"[attachment{name} ({attachment.media_type}) left out: {problem}]"
    return f"File{name}:\n{mended((attachment.data or b'').decode('utf-8', 'replace'))}"


def _url(attachment: Attachment) -> str:
    if attachment.url is not None:
        return attachment.url
    return f"data:{attachment.media_type};base64,{_base64(attachment)}"


def _base64(attachment: Attachment) -> str:
    return base64.b64encode(attachment.data or b"").decode("ascii")


def _name(attachment: Attachment) -> str:
    """A file name with the ending that goes with the media type."""
    name, ending = mended(attachment.name) or "document", _ENDINGS[attachment.media_type]
    return name if name.lower().endswith(ending) else name + ending
