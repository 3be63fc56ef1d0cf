"""From records to the ``contents`` of a Gemini request.

Rules of the API (ai.google.dev, "Function calling" and "Thought signatures", read 2026-11): user
and model take turns, the user begins and ends; the outputs of a reply's function calls follow it at
once, as many as there were calls, matched by id and name; what came with a signature goes back as
it came.
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from typing import Any, Final

from contextwindow.models.gemini_decoder import API, METADATA
from contextwindow.models.sse import mended, mended_json
from contextwindow.models.steps import Step, native_items, refusal_of
from contextwindow.records import Attachment, RecordType

FOREIGN_SIGNATURE: Final = "skip_thought_signature_validator"
"""What the documentation gives for function calls that no Gemini model has made."""

ID_LIMIT: Final = 64

_OPENING: Final = "(The conversation begins.)"
_GO_ON: Final = "(Go on.)"
# These look at no signature, or would refuse one that is none.
_UNSIGNED: Final = re.compile(r"(?:^|/)gemini-[12]\b")
_REQUEST_LIMIT: Final = 20_000_000
_IMAGES: Final = ("png", "jpeg", "webp", "heic", "heif")
_AUDIO: Final = (
    "wav", "x-wav", "mp3", "mpeg", "mpga", "mp4", "m4a", "x-m4a", "aiff", "x-aiff", "aac", "ogg",
    "opus", "flac", "x-flac", "webm", "pcm", "l16",
)  # fmt: skip
_VIDEO: Final = (
    "mp4", "mpeg", "mpg", "mov", "quicktime", "avi", "x-msvideo", "x-flv", "webm", "wmv",
    "x-ms-wmv", "3gpp",
)  # fmt: skip
_TEXTS: Final = ("plain", "html", "css", "javascript", "csv", "markdown", "xml", "rtf", "x-python")
_TAKEN: Final = frozenset(
    {f"image/{kind}" for kind in _IMAGES}
    | {f"audio/{kind}" for kind in _AUDIO}
    | {f"video/{kind}" for kind in _VIDEO}
    | {f"text/{kind}" for kind in _TEXTS}
    | {"application/pdf", "application/json", "application/rtf"}
)


class Contents:
    """The contents of a request while they are put together.

    Args:
        model: the provider's name of the model, which decides about signatures.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._system: list[str] = []
        self._contents: list[dict[str, Any]] = []
        # Calls that wait for their outputs: the provider's, by our ids.
        self._calls: dict[str, deque[dict[str, Any]]] = {}

    def add(self, step: Step) -> None:
        """Append what *step* becomes."""
        match step.kind:
            case "system":
                if step.text:
                    self._system.append(step.text)
            case "user":
                parts = [{"text": step.text}] if step.text else []
                parts += [self._attached(one) for one in step.record.attachments]
                self._append("user", parts)
            case "text":
                self._append("model", self._text(step))
            case "reasoning":
                self._append("model", _own_parts(step))
            case "call":
                self._append("model", self._call(step))
            case "output":
                self._append("user", [self._output(step)])

    def done(self) -> list[dict[str, Any]]:
        """All contents; never empty, the user begins and has the last word."""
        contents = self._contents
        if not contents or contents[0]["role"] != "user":
            contents.insert(0, {"role": "user", "parts": [{"text": _OPENING}]})
        if contents[-1]["role"] != "user":
            contents.append({"role": "user", "parts": [{"text": _GO_ON}]})
        if _UNSIGNED.search(self._model) is None:
            for content in contents:
                _sign(content)
        return contents

    def system(self) -> dict[str, Any] | None:
        """The system instruction, or None without one."""
        return {"parts": [{"text": "\n\n".join(self._system)}]} if self._system else None

    def _append(self, role: str, parts: list[dict[str, Any]]) -> None:
        if not parts:
            return
        if not self._contents or self._contents[-1]["role"] != role:
            self._contents.append({"role": role, "parts": []})
        self._contents[-1]["parts"] += parts

    def _text(self, step: Step) -> list[dict[str, Any]]:
        parts = _own_parts(step)
        if parts:
            return parts
        text = step.text + refusal_of(step.record)
        return [{"text": text}] if text else []

    def _call(self, step: Step) -> list[dict[str, Any]]:
        parts = _own_parts(step)
        call = next((part["functionCall"] for part in parts if _is_call(part)), None)
        if call is None:
            call = {"id": step.call_id, "name": step.name, "args": _arguments(step.text)}
            parts.append({"functionCall": call})
        self._calls.setdefault(step.call_id, deque()).append(call)
        return parts

    def _output(self, step: Step) -> dict[str, Any]:
        waiting = self._calls.get(step.call_id)
        call = waiting.popleft() if waiting else {"id": step.call_id, "name": step.name}
        response: dict[str, Any] = {"name": call["name"], "response": _response(step)}
        if call.get("id"):
            response = {"id": call["id"], **response}
        return {"functionResponse": response}

    def _attached(self, attachment: Attachment) -> dict[str, Any]:
        problem = attachment_problem(self._model, attachment)
        media_type = attachment.media_type
        if problem is not None:
            name = mended(attachment.name)
            return {"text": f"[attachment {name} ({media_type}) left out: {problem}]"}
        if media_type not in _TAKEN:
            media_type = "text/plain"
        if attachment.data is None:
            return {"fileData": {"mimeType": media_type, "fileUri": attachment.url}}
        data = base64.b64encode(attachment.data).decode("ascii")
        return {"inlineData": {"mimeType": media_type, "data": data}}


def attachment_problem(model: str, attachment: Attachment) -> str | None:
    """Why *model* cannot take *attachment*, or None when it can."""
    media_type = attachment.media_type
    if media_type not in _TAKEN and not media_type.startswith("text/"):
        return f"{model} takes no {media_type}"
    if attachment.data is None:
        return None
    size = (len(attachment.data) + 2) // 3 * 4
    if size > _REQUEST_LIMIT:
        return (
            f"it takes {size / 1e6:.1f} MB in the request, which may have "
            f"{_REQUEST_LIMIT / 1e6:.0f} MB; pass a URL"
        )
    if not attachment.data:
        return "it is empty"
    return None


def _own_parts(step: Step) -> list[dict[str, Any]]:
    """The provider's own parts of a record, without what cannot be sent."""
    return [item for item in native_items(step.record, API) or () if METADATA not in item]


def _is_call(part: dict[str, Any]) -> bool:
    call = part.get("functionCall")
    return isinstance(call, dict) and isinstance(call.get("name"), str)


def _sign(content: dict[str, Any]) -> None:
    """Give the first function call of a reply the signature that Gemini 3 demands there."""
    if content["role"] != "model":
        return
    for number, part in enumerate(content["parts"]):
        if "functionCall" in part:
            if not part.get("thoughtSignature"):
                content["parts"][number] = {**part, "thoughtSignature": FOREIGN_SIGNATURE}
            return


def _arguments(text: str) -> dict[str, Any]:
    """A call's arguments, which must be an object: of other providers they may be any text."""
    found = _object(text)
    return {"input": text} if found is None else found


def _response(step: Step) -> dict[str, Any]:
    found = _object(step.text)
    output: Any = step.text if found is None else found
    # An output that stands for a missing one comes with the call's own record.
    failed = step.record.error or step.record.source is RecordType.TOOL_CALL
    return {"error" if failed else "output": output}


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that *text* is, or None."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return mended_json(found) if isinstance(found, dict) else None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
