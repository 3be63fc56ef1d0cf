"""Gemini's ``generateContent``, as bytes: streamed, or in one body.

Shapes: recordings of 2025-03 to 2026-08.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any, Final

from contextwindow.records import Usage
from contextwindow.testing.fake_reply import FakeReply
from contextwindow.testing.rules_gemini import refusal
from contextwindow.testing.script import cut_in_pieces, plausible_usage, spelled_out, token_count
from contextwindow.testing.wire import (
    Answer,
    FakeRequest,
    WireStream,
    broken_before,
    in_one_body,
    json_answer,
    sse,
    streamed,
    to_json,
)
from contextwindow.testing.wire_openai import Desk

_PATH: Final = re.compile(r"/(?:v1|v1beta)(?:/.*)?/models/([^/:]+):(\w+)")
_ERRORS: Final[dict[int, tuple[str, str]]] = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "API key not valid. Please pass a valid API key."),
    403: ("PERMISSION_DENIED", "The caller does not have permission."),
    404: ("NOT_FOUND", "The model is not found."),
    429: ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    500: ("INTERNAL", "An internal error has occurred."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "The deadline expired."),
}
_TOO_LONG: Final = "The input token count (2000000) exceeds the maximum number of tokens allowed."
_REASONS: Final = {"length": "MAX_TOKENS", "content_filter": "SAFETY", "refusal": "SAFETY"}
_CODES: Final = {kind: status for status, (kind, _) in _ERRORS.items()}
_GARBAGE: Final = '{"broken": '


class GeminiWire:
    """``generateContent``, streamed or not, and ``countTokens``."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._signatures: set[str] = set()

    def answer(self, request: FakeRequest) -> Answer | None:
        """The answer to *request*; None where the path is none of Gemini's."""
        found = _PATH.fullmatch(request.path)
        if found is None or request.method != "POST":
            return None
        model, method = found.groups()
        if method == "countTokens":
            return self._count(model, request)
        if method not in ("generateContent", "streamGenerateContent"):
            return None
        streams = method == "streamGenerateContent"
        in_array = streams and request.query.get("alt") != "sse"
        why = refusal(model, request.fields, self._signatures)
        if why is not None:
            return error_answer(400, "INVALID_ARGUMENT", why, in_array=in_array)
        number, reply = self._desk.next_reply()
        if reply.status is not None:
            return _refused(reply, in_array=in_array)
        broken = broken_before(reply.fault)
        if broken is not None:
            return broken
        text = reply.text_chunks(_said(request.fields))
        content = ContentReply(model, reply, number=number, text=text, given=_given(request.fields))
        self._signatures |= content.signatures
        if not streams or reply.fault == "json_body":
            return in_one_body(content.body(), error_body(reply), reply)
        return streamed(content.array() if in_array else content.stream(), reply)

    def _count(self, model: str, request: FakeRequest) -> Answer:
        failure = self._desk.counting
        if failure is not None:
            broken = broken_before(failure.fault)
            return _refused(failure, in_array=False) if broken is None else broken
        whole = request.fields.get("generateContentRequest")
        if not isinstance(whole, dict):
            return json_answer({"totalTokens": _given(request.fields)})
        if "contents" in request.fields:
            why: str | None = "contents and generateContentRequest exclude each other"
        elif not str(whole.get("model")).endswith(f"/{model}"):
            why = "generateContentRequest.model: is not the model of the path"
        else:
            why = refusal(model, whole, self._signatures)
        if why is not None:
            return error_answer(400, "INVALID_ARGUMENT", why, in_array=False)
        return json_answer({"totalTokens": _given(whole)})


class ContentReply:
    """One reply to one request.

    Args:
        number: of the reply on this server; ids are made from it.
        text: what is left to say, in chunks.
        given: tokens of the request.

    Attributes:
        signatures: what it is signed with.
    """

    def __init__(
        self, model: str, reply: FakeReply, *, number: int, text: Sequence[str], given: int
    ) -> None:
        said = not reply.blocked
        self._reply = reply
        self._model = model
        self._number = number
        self._calls = spelled_out(reply.tool_calls, number) if said else []
        thought = cut_in_pieces(reply.reasoning, "words") if said else []
        words = [*text, *cut_in_pieces(reply.refusal, "words")] if said else []
        spoken = "".join(name + raw for name, raw, _ in self._calls)
        counted = plausible_usage(given, thought, (words, spoken))
        self._usage = counted if reply.usage == "count" else reply.usage
        # In place of what the service has encrypted: no two replies have the same.
        signature = base64.b64encode(f"fake signature {number}".encode()).decode()
        signed = bool(self._calls or thought)
        self.signatures = {signature} if signed else set()
        self._parts: list[dict[str, Any]] = []
        if not reply.hidden:
            self._parts += [{"text": piece, "thought": True} for piece in thought]
        self._parts += [{"text": piece} for piece in words]
        self._malformed = ""
        calls = self._function_calls()
        # The first call is signed, or else the end of the text, which is a part of its own.
        self._end: dict[str, Any] = {"text": ""}
        if calls:
            calls[0]["thoughtSignature"] = signature
        elif signed:
            self._end["thoughtSignature"] = signature
        self._parts += calls

    def _function_calls(self) -> list[dict[str, Any]]:
        """The calls up to the first that is no JSON object: the service gives up there."""
        calls: list[dict[str, Any]] = []
        for name, raw, call_id in self._calls:
            arguments = _arguments(raw)
            if arguments is None:
                self._malformed = f"Malformed function call: {name}({raw})"
                break
            call = {"name": name, "args": arguments}
            if self._reply.call_ids:
                call = {"id": call_id, **call}
            calls.append({"functionCall": call})
        return calls

    def stream(self) -> WireStream:
        """The reply as events."""
        events = [sse(chunk) for chunk in self.chunks()]
        error = sse(error_body(self._reply))
        return WireStream(
            events, list(range(len(self._parts))), lambda _: error, lambda _: error, sse(_GARBAGE)
        )

    def array(self) -> WireStream:
        """The reply as a JSON array that arrives in pieces: what comes without ``alt=sse``."""
        chunks = [to_json(chunk) for chunk in self.chunks()]
        events = [(b"," if number else b"[") + chunk for number, chunk in enumerate(chunks)]
        events[-1] += b"]"
        body = to_json(error_body(self._reply))

        def error(number: int) -> bytes:
            return (b"," if number else b"[") + body + b"]"

        return WireStream(
            events,
            list(range(len(self._parts))),
            error,
            error,
            _GARBAGE.encode(),
            "application/json; charset=UTF-8",
        )

    def chunks(self) -> list[dict[str, Any]]:
        """The reply chunk by chunk; the last says why it ended."""
        if self._reply.blocked:
            return [self._prompt_refused()]
        chunks = [self._chunk([part], {}, last=False) for part in self._parts]
        return [*chunks, self._chunk([self._end], self._ended(), last=True)]

    def body(self) -> dict[str, Any]:
        """The reply in one body."""
        if self._reply.blocked:
            return self._prompt_refused()
        joined: list[dict[str, Any]] = []
        for part in self._parts:
            plain = set(part) <= {"text", "thought"}
            if plain and joined and set(joined[-1]) == set(part):
                joined[-1] = {**part, "text": joined[-1]["text"] + part["text"]}
            else:
                joined.append(part)
        if "thoughtSignature" in self._end:
            text = joined.pop() if joined and set(joined[-1]) == {"text"} else {}
            joined.append({**self._end, **text})
        return self._chunk(joined, self._ended(), last=True)

    def _prompt_refused(self) -> dict[str, Any]:
        rating = {"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "HIGH"}
        feedback = {"blockReason": "SAFETY", "safetyRatings": [rating]}
        chunk = self._chunk([], {}, last=True)
        del chunk["candidates"]
        return {"promptFeedback": feedback, **chunk}

    def _ended(self) -> dict[str, Any]:
        """Why the reply ended, as members of the candidate."""
        if self._malformed:
            return {
                "finishReason": "MALFORMED_FUNCTION_CALL",
                "finishMessage": self._malformed,
            }
        reason = self._reply.finish_reason
        if reason is None and self._reply.refusal:
            return {"finishReason": "SAFETY"}
        return {"finishReason": _REASONS.get(reason or "stop", "STOP")}

    def _chunk(
        self, parts: list[dict[str, Any]], end: dict[str, Any], *, last: bool
    ) -> dict[str, Any]:
        candidate = {"content": {"parts": parts, "role": "model"}, **end, "index": 0}
        chunk: dict[str, Any] = {"candidates": [candidate]}
        if self._usage is not None:
            chunk["usageMetadata"] = _counts(self._usage, whole=last)
        return {
            **chunk,
            "modelVersion": self._model,
            "responseId": f"fake-{self._number}",
        }


def error_answer(
    status: int,
    kind: str,
    message: str,
    details: Sequence[dict[str, Any]] = (),
    *,
    in_array: bool = False,
) -> Answer:
    """An HTTP error in Google's form.

    Args:
        in_array: as it comes to who asked for a JSON array.
    """
    error: dict[str, Any] = {"code": status, "message": message, "status": kind}
    if details:
        error["details"] = list(details)
    body = {"error": error}
    return json_answer([body] if in_array else body, status=status)


def error_body(reply: FakeReply) -> dict[str, Any]:
    """The error of *reply* in a stream."""
    kind = reply.type or "UNAVAILABLE"
    code = _CODES.get(kind, 500)
    message = reply.message or _ERRORS.get(code, _ERRORS[500])[1]
    return {"error": {"code": code, "message": message, "status": kind}}


def _refused(reply: FakeReply, *, in_array: bool) -> Answer:
    status = reply.status or 500
    kind, message = _ERRORS.get(status, ("UNKNOWN", "The server had an error."))
    if reply.code == "context_length_exceeded":
        kind, message = "INVALID_ARGUMENT", _TOO_LONG
    details: list[dict[str, Any]] = []
    if isinstance(reply.retry_after, (int, float)):
        wait = {"retryDelay": f"{reply.retry_after}s"}
        details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", **wait}]
    return error_answer(
        status, reply.type or kind, reply.message or message, details, in_array=in_array
    )


def _counts(usage: Usage, *, whole: bool) -> dict[str, Any]:
    counts = {"promptTokenCount": usage.input_tokens}
    if usage.cache_read_tokens:
        counts["cachedContentTokenCount"] = usage.cache_read_tokens
    if whole:
        counts["candidatesTokenCount"] = usage.output_tokens - usage.reasoning_tokens
        if usage.reasoning_tokens:
            counts["thoughtsTokenCount"] = usage.reasoning_tokens
        counts["totalTokenCount"] = usage.total_tokens
    return counts


def _given(fields: dict[str, Any]) -> int:
    sent = [fields.get("systemInstruction"), fields.get("contents")]
    return token_count(to_json(sent).decode())


def _arguments(raw: str) -> dict[str, Any] | None:
    """The arguments of a call as an object, or None where they are none."""
    try:
        value = json.loads(raw or "{}", parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _said(body: dict[str, Any]) -> str:
    """The last text of the model, or ``""``."""
    for content in reversed(body.get("contents") or []):
        if content.get("role") == "model":
            texts = [p["text"] for p in content["parts"] if "text" in p and not p.get("thought")]
            if any(texts):
                return "".join(texts)
    return ""
