"""Between the wire formats and the HTTP server: answers, and streams with their faults."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from contextwindow.testing.fake_reply import FakeReply

Ending = Literal["whole", "close", "truncate", "reset", "stall"]


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """One request that a ``FakeProvider`` got.

    Attributes:
        path: without the query.
        headers: names in lower case; what holds a key is masked.
        body: the parsed JSON; None when there was none.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any = None

    @property
    def fields(self) -> dict[str, Any]:
        """The body, or nothing where it is no JSON object."""
        return self.body if isinstance(self.body, dict) else {}


@dataclass(slots=True)
class Answer:
    """What the HTTP server plays.

    Attributes:
        pieces: of the body, each a chunk of HTTP's chunked encoding; with *is_chunk* where the
            pace holds.
        ending: how the body ends; ``whole`` keeps the connection.
        length: what Content-Length claims; None for the chunked encoding, or for a body that
            the connection's end frames (``close``).
    """

    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[bytes, bool]] = field(default_factory=list)
    ending: Ending = "whole"
    length: int | None = None
    pace: float = 0.0
    silent: bool = False


@dataclass(slots=True)
class WireStream:
    """A whole reply as events of a wire format.

    Attributes:
        events: the bytes of each; the last is the terminal marker.
        chunks: which of them are chunks.
        error: the error event that comes instead of event number *n*.
        failed: the same, where the format has a second way to say so.
        garbage: an event that is no JSON.
    """

    events: list[bytes]
    chunks: list[int]
    error: Callable[[int], bytes]
    failed: Callable[[int], bytes]
    garbage: bytes = b'data: {"broken": \n\n'
    content_type: str = "text/event-stream; charset=utf-8"


class Wire(Protocol):
    """One provider's API: which requests it knows, and what it answers."""

    def answer(self, request: FakeRequest) -> Answer | None:
        """The answer to *request*; None where the path is not of this API."""


def to_json(value: Any) -> bytes:
    """*value* as servers write it: UTF-8, with escapes only for what UTF-8 cannot hold."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def sse(data: Any, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    body = data.encode() if isinstance(data, str) else to_json(data)
    return head + b"data: " + body + b"\n\n"


def json_answer(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """A whole JSON body."""
    raw = to_json(body)
    return Answer(status, headers=headers or {}, pieces=[(raw, False)], length=len(raw))


def broken_before(fault: str | None) -> Answer | None:
    """The answer to a request that gets none of the reply, or None for other faults."""
    if fault == "reset_before":
        return Answer(silent=True, ending="reset")
    if fault == "stall_before":
        return Answer(silent=True, ending="stall")
    if fault == "html":
        page = b"<!DOCTYPE html><html><body><h1>Please sign in</h1></body></html>"
        return Answer(content_type="text/html", pieces=[(page, False)], length=len(page))
    return None


def streamed(stream: WireStream, reply: FakeReply) -> Answer:
    """*stream* up to the fault of *reply*."""
    events, fault = stream.events, reply.fault
    cut = len(events) if fault is None else _cut(stream, reply.at)
    ending: Ending = "whole"
    extra: list[bytes] = []
    match fault:
        case "reset" | "truncate" | "stall":
            ending = fault
        case "eof_close":
            ending = "close"
        case "eof_mid":
            extra = [events[cut][: len(events[cut]) // 2]]
        case "no_done":
            cut = len(events) - 1
        case "error":
            extra = [stream.error(cut)]
        case "failed":
            extra = [stream.failed(cut)]
        case "garbage":
            extra = [stream.garbage, *events[cut:]]
    chunks = set(stream.chunks)
    pieces = [(event, number in chunks) for number, event in enumerate(events[:cut])]
    pieces += [(event, False) for event in extra]
    return Answer(
        content_type=stream.content_type,
        pieces=pieces,
        ending=ending,
        pace=reply.pace,
    )


def in_one_body(body: Any, error: Any, reply: FakeReply) -> Answer:
    """*body* for a request without a stream, with the fault of *reply*."""
    if reply.fault in ("error", "failed"):
        return json_answer(error)
    answer = json_answer(body)
    raw = answer.pieces[0][0]
    half = [(raw[: len(raw) // 2], False)]
    match reply.fault:
        case "reset" | "truncate" | "stall":
            answer.pieces, answer.ending = half, reply.fault
        case "eof" | "eof_mid" | "eof_close":
            answer.pieces, answer.ending, answer.length = half, "close", None
        case "garbage":
            answer.pieces, answer.length = half, len(half[0][0])
    return answer


def _cut(stream: WireStream, at: int | None) -> int:
    """How many events come before chunk *at*, or up to the last chunk."""
    chunks = stream.chunks
    if at is not None and at < len(chunks):
        return chunks[at]
    return chunks[-1] + 1 if chunks else 1
